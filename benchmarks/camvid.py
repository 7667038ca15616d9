"""Trains on CamVid on one device, from files to mIoU: a teacher, a plain and a CWD student.

    python -m benchmarks.camvid --source CAMVID
    python -m benchmarks.camvid --small               a quick check on generated images

CAMVID holds `images/<split>` and `labels/<split>`, train and test, with the 11 classes of SegNet's
copy and 11 for unlabeled. The examples and their crops are in the device's memory. Needs no
TensorFlow. PSPNet-R50 teaches R18 of width 16, all from scratch, one seed.
"""

import dataclasses
import functools
import pathlib
import time
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import flags
from ml_collections import ConfigDict
from PIL import Image

from benchmarks import rounds
from kdjax import config as configuration
from kdjax import recipes
from kdjax.cli import command
from kdjax.config import Config, network
from kdjax.data.loading.device_augment import augment_batch
from kdjax.data.loading.sampling import AugmentOptions, index_batches
from kdjax.data.loading.sources import InMemoryExamples
from kdjax.data.options import CropOptions
from kdjax.evaluation.evaluator import Predictor, evaluate
from kdjax.experiment.build import build_distiller, build_state, build_step
from kdjax.experiment.student import make_student
from kdjax.models import Network, Variables
from kdjax.models.outputs import Preprocessing
from kdjax.training.sharding import Placement
from kdjax.training.step import PreprocessedNetwork
from kdjax.utils.classes import IGNORE_LABEL
from kdjax.utils.errors import UserError

SOURCE = flags.DEFINE_string("source", None, "The folder of CamVid.")
SMALL = flags.DEFINE_bool("small", False, "Generated images, and few training steps.")
STEPS = flags.DEFINE_integer("steps", 1200, "Steps of a student. The teacher trains for 2,000.", 1)
TEACHER_STEPS = 2000
DTYPE = "bfloat16"
CLASSES = (
    *("Sky", "Building", "Pole", "Road", "Pavement", "Tree", "SignSymbol", "Fence", "Car"),
    *("Pedestrian", "Bicyclist"),
)
# The only sequence of the test split without an image in the training split.
UNSEEN = "Seq05VD"
Examples = dict[str, dict[str, np.ndarray]]


class Trained(NamedTuple):
    """A trained network, and the seconds of a step."""

    network: Network
    variables: Variables
    preprocessing: Preprocessing
    step_seconds: float


def main(argv: list[str]) -> None:
    del argv
    if SMALL.value == bool(SOURCE.value):
        raise UserError("give one of --source CAMVID and --small")
    train, test = (made_up(6), made_up(4)) if SMALL.value else map(read, ("train", "test"))
    unseen = {name: example for name, example in test.items() if name.startswith(UNSEEN)}
    teacher = run(recipes.teacher_of(make_config()), train, None)
    config = make_config()
    found = {"teacher": teacher, "plain": run(config, train, None)}
    with config.unlocked():
        config.terms = ConfigDict(recipes.terms_of("cwd"))
    found["cwd"] = run(config, train, teacher)
    print("| network | ms a step | images/s | test mIoU | unseen mIoU |")
    print("| --- | ---: | ---: | ---: | ---: |")
    for name, trained in found.items():
        speed = config.data.batch_size / trained.step_seconds
        scores = [f"{100 * miou(trained, examples):.2f}" for examples in (test, unseen)]
        print(f"| {name} | {1e3 * trained.step_seconds:.1f} | {speed:.0f} | {' | '.join(scores)} |")
    print(f"\n{rounds.machine()}")


def make_config() -> Config:
    """Returns the config of CamVid at twice its size."""
    config = recipes.camvid()
    config.steps, config.compare.teacher_steps = STEPS.value, TEACHER_STEPS
    config.data.crop_size = (320, 416)
    config.teacher.update(network("pspnet_r50", dtype=DTYPE))
    config.student.update(network("pspnet_r18", width=16, dtype=DTYPE))
    if SMALL.value:
        config.steps = config.compare.teacher_steps = 3
        config.data.crop_size, config.data.batch_size = (40, 56), 2
        config.teacher.update(network("pspnet_r18", width=8))
        config.student.update(network("pspnet_r18", width=4))
    return config


def read(split: str) -> Examples:
    """Returns the examples of a split by name."""
    folder = pathlib.Path(SOURCE.value or "")
    paths = sorted((folder / "images" / split).glob("*.*"))
    if not paths:
        raise UserError(f"--source {folder}: there are no images in {folder / 'images' / split}")
    examples = {}
    for path in paths:
        label = np.array(Image.open(folder / "labels" / split / f"{path.stem}.png"))
        label[label == len(CLASSES)] = IGNORE_LABEL
        image = np.asarray(Image.open(path).convert("RGB"))
        examples[path.stem] = {"image": image, "label": label}
    return examples


def made_up(count: int) -> Examples:
    """Returns images of noise, and labels of patches."""
    rng = np.random.default_rng(count)
    return {
        f"{UNSEEN if number % 2 else 'seen'}_{number}": {
            "image": rng.integers(0, 256, (48, 64, 3), np.uint8),
            "label": rng.integers(0, len(CLASSES), (3, 4), np.uint8).repeat(16, 0).repeat(16, 1),
        }
        for number in range(count)
    }


def run(config: Config, train: Examples, teacher: Trained | None) -> Trained:
    """Trains the student of a config."""
    options = configuration.read(config)
    data, placement = options.data, Placement()
    palette = np.zeros((len(CLASSES), 3), np.uint8)
    student, variables, info = make_student(options, CLASSES, palette)
    pair = teacher and (teacher.network, teacher.variables)
    distiller = build_distiller(options, (student, variables), pair, num_classes=len(CLASSES))
    step = build_step(
        options,
        PreprocessedNetwork(student, info.preprocessing),
        PreprocessedNetwork(teacher.network, teacher.preprocessing) if teacher else None,
        distiller,
    )
    state = placement.put_state(build_state(options, variables, distiller))
    frozen = placement.put_state(teacher.variables) if teacher else None
    held = placement.replicate(InMemoryExamples(train.values()).padded())
    crops = AugmentOptions(
        **{field.name: getattr(data, field.name) for field in dataclasses.fields(CropOptions)}
    )

    @functools.partial(jax.jit, donate_argnums=0)
    def advance(state: Any, frozen: Any, held: Any, indices: Any, draws: Any) -> Any:
        return step(state, frozen, augment_batch(held, indices, draws, crops))

    batches = index_batches(
        (len(train),),
        (1,),
        batch_size=data.batch_size,
        seed=options.seed,
        steps=range(options.steps),
        options=crops,
    )
    started = time.perf_counter()
    for number, batch in enumerate(batches):
        batch = placement.put_batch(batch)
        state, _ = advance(state, frozen, held, batch["indices"], batch["draws"])
        if number == 0:
            jax.block_until_ready(state)
            started = time.perf_counter()
    jax.block_until_ready(state)
    seconds = (time.perf_counter() - started) / (options.steps - 1)
    return Trained(student, state.student(), info.preprocessing, seconds)


def miou(trained: Trained, examples: Examples) -> float:
    """Evaluates a network on whole images, one at a time."""
    batches = (
        {
            "image": example["image"][None],
            "label": example["label"][None],
            "size": np.array([example["label"].shape], np.int32),
        }
        for example in examples.values()
    )
    predictor = Predictor(trained.network, trained.preprocessing)
    put = Placement().replicate
    return evaluate(predictor, trained.variables, batches, len(CLASSES), put).miou


if __name__ == "__main__":
    command.run(main)
