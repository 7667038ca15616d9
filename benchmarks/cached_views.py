"""What a teacher's cached scores say of crops, next to the live teacher, by the scale of the crops.

    python -m benchmarks.cached_views --config configs/camvid_pspnet_r18_cached.py \\
        --config.teacher.checkpoint=DIR

On the same training crops: how many labelled pixels each gets right, on how many both name the same
class, and the mean divergence and entropies of their cells. Makes the cache where it is missing.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from kdjax.cli import command
from kdjax.cli.flags import ConfigFlag
from kdjax.data.images import Images
from kdjax.distillation import Distiller
from kdjax.evaluation.evaluator import TrainedNetwork
from kdjax.experiment.input_pipeline import make_input_pipeline
from kdjax.models import scores_of
from kdjax.models.layers import resize
from kdjax.teachers.cache import NetworkScores, TeacherCache
from kdjax.training.sharding import Placement
from kdjax.utils.classes import IGNORE_LABEL
from kdjax.utils.log import RunLogger

# Any term that reads scores alone would do.
NO_TERMS = Distiller({}, student={})
CONFIG = ConfigFlag()
SCALES = flags.DEFINE_list("scales", ["0.5", "0.75", "1", "1.5", "2"], "Of the images cropped.")
BATCHES = flags.DEFINE_integer("batches", 6, "For each scale.", 1)


def main(argv: list[str]) -> None:
    del argv
    options = CONFIG.read()
    dtype = options.teacher.dtype
    teacher = TrainedNetwork.load(options.teacher.checkpoint, dtype=dtype).frozen(dtype)
    images = Images(options.data)
    said = NetworkScores(options, images, teacher)
    scores = TeacherCache(options, images, said, NO_TERMS, RunLogger("views")).open()

    @jax.jit
    def compare(batch):
        label = batch["label"]
        seen = teacher.info.preprocessing(batch["image"])
        output, _ = teacher.network.apply(teacher.variables, seen, train=False, key=None)
        live = scores_of(output).astype(jnp.float32)
        crop = label.shape[1:]
        cached = batch["teacher"].like({"logits": live})["logits"]
        labelled = label != IGNORE_LABEL
        said = [jnp.argmax(resize(scores, crop), -1) for scores in (live, cached)]
        shares = [
            jnp.mean(same, where=labelled)
            for same in (said[0] == label, said[1] == label, said[0] == said[1])
        ]
        p, q = (jax.nn.log_softmax(scores) for scores in (live, cached))
        divergence = jnp.sum(jnp.exp(p) * (p - q), -1)
        entropies = [-jnp.sum(jnp.exp(x) * x, -1) for x in (p, q)]
        return jnp.stack([*shares, *(x.mean() for x in (divergence, *entropies))])

    print("\n| scale | right, live | right, cached | same class | KL | entropy, live | cached |")
    print("| ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    for scale in map(float, SCALES.value):
        source = make_input_pipeline(
            Images(dataclasses.replace(options.data, scale_range=(scale, scale))),
            Placement(options.mesh),
            first_step=0,
            steps=BATCHES.value,
            seed=0,
            clean_view=False,
            scores=scores,
        )
        found = np.mean([compare(source.expand(batch)) for batch in source.batches], 0)
        shares = " | ".join(f"{100 * share:.1f} %" for share in found[:3])
        print(f"| {scale:g} | {shares} | " + " | ".join(f"{nats:.2f}" for nats in found[3:]) + " |")


if __name__ == "__main__":
    command.run(main)
