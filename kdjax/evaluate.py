"""Evaluates the student of a finished run, or any network checkpoint.

python -m kdjax.evaluate --workdir DIR [--split test] [--checkpoint DIR]
    [--mode slide --window 512,512 --stride 341,341] [--scales 0.5,1.0 --flip] [--data_dir DIR]
"""

from absl import flags

from kdjax import command, inference_flags, processes
from kdjax.errors import UserError
from kdjax.evaluation.evaluator import evaluate
from kdjax.experiments import environment
from kdjax.experiments.images import Images
from kdjax.experiments.networks import TrainedNetwork
from kdjax.experiments.workdir import Workdir
from kdjax.training.sharding import Placement

_WORKDIR = flags.DEFINE_string(
    "workdir", None, "A workdir of kdjax.train, whose data set is evaluated on.", required=True
)
_SPLIT = flags.DEFINE_string("split", None, "Which split; by default the one for validation.")
_CHECKPOINT = flags.DEFINE_string(
    "checkpoint", None, "Another network to evaluate on the same data, such as the teacher."
)
_DATA_DIR = flags.DEFINE_string(
    "data_dir", None, "Where the run's data set is now, if that is no longer where it was."
)
_PROCESSES = processes.define_flags()


def main(argv: list[str]) -> None:
    """Prints mIoU, pixel accuracy and the IoU of every class."""
    del argv
    processes.join(_PROCESSES)
    environment.enable_compilation_cache()
    config = Workdir(_WORKDIR.value).read_config()
    config.data.data_dir = _DATA_DIR.value or config.data.data_dir
    images = Images(config.data)
    split = _SPLIT.value or config.data.val_split
    inference = inference_flags.from_flags(config.data.crop_size)
    network = TrainedNetwork.load(_CHECKPOINT.value or _WORKDIR.value, inference=inference)
    if network.info.num_classes != images.num_classes:
        raise UserError(
            f"the network scores {network.info.num_classes} classes, the data set has "
            f"{images.num_classes}"
        )
    placement = Placement(config.mesh)
    placement.check_batch_size("data.eval_batch_size", config.data.eval_batch_size)
    scores = evaluate(
        network.predictor,
        placement.put_state(network.variables),
        images.eval_batches(
            split,
            pad_to=inference_flags.pad_to(config.data.eval_pad_to),
            exact_below=inference.exact_below,
        ),
        images.num_classes,
        placement.put_batch,
    )
    width = max(map(len, images.class_names))
    for name, iou in zip(images.class_names, scores.iou, strict=True):
        processes.say(f"{name:{width}}  {100 * iou:6.2f} %")
    processes.say(
        f"{split}: mIoU {100 * scores.miou:.2f} %, "
        f"pixel accuracy {100 * scores.pixel_accuracy:.2f} %"
    )
    print(f"shapes compiled: {len(network.predictor.shapes)}")


if __name__ == "__main__":
    command.run(main)
