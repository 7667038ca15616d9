"""One run from its config to its report: trains a teacher, a plain student or a taught one."""

import time
from typing import Any

import jax
import numpy as np
from flax import nnx

from kdjax.config import Config
from kdjax.distillation import terms as distillation_terms
from kdjax.errors import UserError
from kdjax.evaluation.evaluator import Predictor, evaluate
from kdjax.evaluation.metrics import Scores
from kdjax.experiments import environment
from kdjax.experiments.feeding import feed
from kdjax.experiments.images import Images
from kdjax.experiments.networks import Network, predict_examples
from kdjax.experiments.students import make_student
from kdjax.experiments.teacher_cache import TeacherCache
from kdjax.experiments.workdir import Workdir
from kdjax.models import saved
from kdjax.reporting import figures, writers
from kdjax.reporting.results import Role
from kdjax.training.assembly import assemble_state, assemble_step
from kdjax.training.checkpoints import Checkpoints
from kdjax.training.loop import fit
from kdjax.training.profiling import Profile
from kdjax.training.sharding import Placement
from kdjax.training.state import TrainState
from kdjax.training.step import Side


def train(
    config: Config,
    workdir: str,
    *,
    label: str,
    method: str,
    role: Role,
    profiled_steps: tuple[int, int] | None = None,
) -> None:
    """Trains the student of a config, or continues where an earlier call stopped.

    A finished run is left as it is. Afterwards the workdir holds the student as a network
    checkpoint (`student/`), and `result.json`.

    Args:
      config: as `kdjax.config.default` makes it.
      workdir: where everything is written.
      label: what the progress lines begin with.
      method: what the run is called in tables.
      role: what it is there for.
      profiled_steps: the first and the last step to trace into `profile/`.

    Raises:
      UserError: for a mistake in the config, the data or the workdir; nothing is written then.
      Diverged: when the loss is no longer a number; the last checkpoint is kept.
    """
    files = Workdir(workdir)
    if files.result.exists():
        files.claim(config)
        print(f"{label}: already done in {files.path}")
        return

    profile = Profile(files.profile, *profiled_steps) if profiled_steps else None
    images = Images(config.data)
    placement = Placement()
    placement.check_batch_size("data.batch_size", config.data.batch_size)
    placement.check_batch_size("data.eval_batch_size", config.data.eval_batch_size)
    student, info = make_student(config, images)
    teacher = _load_teacher(config)
    terms = _resolve_terms(config, student, teacher)
    cache = None
    if teacher and config.teacher.cache:
        cache = TeacherCache(config, images, teacher, terms)
    evaluation = _Evaluation(config, images, placement, _comparable(teacher, images))
    print(f"{label}: cache {images.cache.place}: {images.cache.reason}")
    for term in terms:
        print(f"{label}: term {term.describe()}")
    for split in filter(None, (config.data.val_split, config.data.test_split)):
        print(f"{label}: {images.describe_evaluation(split)}")
    evaluation.check_teacher(label)
    files.claim(config)
    scores = cache and cache.open(label)

    graphdef, state = assemble_state(config, student, terms, info.num_classes)
    state = jax.device_put(state, placement.replicated)
    checkpoints = Checkpoints(
        files.checkpoints,
        {"data": images.fingerprint, "teacher": teacher and teacher.info.fingerprint},
    )
    first_step = checkpoints.latest_step
    if first_step is not None:
        state = checkpoints.restore(first_step, state)
        print(f"{label}: continues after step {first_step}")
    log = writers.Writers(
        [
            writers.JsonLines(files.metrics, resume_step=first_step),
            writers.TensorBoard(files.tensorboard, resume_step=first_step),
            writers.Console(config.steps, first_step or 0, label),
        ]
    )
    predictor = Predictor(graphdef, info.preprocessing)

    def evaluate_state(step: int, state: TrainState) -> float:
        weights = state.student()
        scores = evaluation.scores(predictor, weights, config.data.val_split)
        log.scalars(step, {"val/miou": scores.miou, "val/pixel_accuracy": scores.pixel_accuracy})
        log.images(step, evaluation.pictures(predictor, weights))
        return scores.miou

    # Beside kept scores, only evaluation runs the teacher.
    live = None if scores else teacher
    train_step = assemble_step(
        config,
        Side(graphdef, info.preprocessing),
        live and Side(live.graphdef, live.info.preprocessing),
        terms,
    )
    training = feed(
        images,
        placement,
        first_step=first_step or 0,
        steps=config.steps,
        seed=config.seed,
        clean_view=live is not None and config.teacher.view == "clean",
        scores=scores,
    )
    started = time.perf_counter()
    try:
        state = fit(
            state,
            live and jax.device_put(live.state, placement.replicated),
            training.attach(train_step),
            training.batches,
            batch_size=config.data.batch_size,
            first_step=first_step or 0,
            steps=config.steps,
            log_every=config.log_every,
            eval_every=config.eval_every,
            placement=placement,
            log=log,
            evaluate=evaluate_state,
            checkpoints=checkpoints,
            profile=profile,
        )
        seconds = time.perf_counter() - started
        if config.export == "best" and checkpoints.best_step is not None:
            state = checkpoints.restore(checkpoints.best_step, state)
        scores = evaluation.final_scores(predictor, state.student())
    finally:
        if profile:
            profile.close()
        log.close()
        checkpoints.close()
    saved.save(files.student, info, state.student())
    files.write_result(
        {
            "role": role,
            "method": method,
            "seed": config.seed,
            "steps": config.steps,
            "learning_rate": config.optimizer.learning_rate,
            "parameters": sum(x.size for x in jax.tree.leaves(state.params["student"])),
            "seconds": seconds,
            "images_per_second": files.median_rate(),
            "teacher": teacher and [config.teacher.checkpoint, teacher.info.fingerprint],
            "scores": {split: value.as_dict() for split, value in scores.items()},
            "versions": environment.versions(),
        }
    )
    for split, value in scores.items():
        print(
            f"{label}: {split} mIoU {100 * value.miou:.2f} %, "
            f"pixel accuracy {100 * value.pixel_accuracy:.2f} %"
        )


def _load_teacher(config: Config) -> Network | None:
    if not distillation_terms.need_teacher(config.terms):
        return None
    if not config.teacher.checkpoint:
        raise UserError(
            "config.terms need a teacher: set config.teacher.checkpoint to a network checkpoint or "
            "the workdir of a finished run"
        )
    teacher = Network.load(config.teacher.checkpoint, dtype=config.teacher.dtype)
    for key in ("name", "width"):
        wanted, found = config.teacher[key], getattr(teacher.info, key)
        if config.teacher.name and wanted != found:
            raise UserError(
                f"config.teacher.{key} is {wanted!r}, but {config.teacher.checkpoint} holds "
                f"{found!r}"
            )
    return teacher


def _resolve_terms(
    config: Config, student: Any, teacher: Network | None
) -> tuple[distillation_terms.Term, ...]:
    offered = nnx.merge(teacher.graphdef, teacher.state).feature_specs if teacher else {}
    return distillation_terms.resolve(config.terms, student.feature_specs, offered)


def _comparable(teacher: Network | None, images: Images) -> Network | None:
    """The teacher where it predicts the classes of the data, rather than only having features."""
    if teacher is None or teacher.info.num_classes != images.num_classes:
        return None
    return teacher


class _Evaluation:
    """Scores and pictures of a student beside its teacher."""

    def __init__(
        self, config: Config, images: Images, placement: Placement, teacher: Network | None
    ):
        self._config = config
        self._images = images
        self._placement = placement
        self._teacher = teacher
        self._examples = images.panel_examples()
        self._taught = teacher and predict_examples(
            teacher.predictor, teacher.state, self._examples, config.data.eval_batch_size
        )

    def scores(
        self,
        predictor: Predictor,
        state: nnx.State,
        split: str,
        *,
        group: str | None = None,
        agreement: bool = False,
    ) -> Scores:
        """Scores on a split, or on one group of it."""
        reference = None
        if agreement and self._teacher:
            reference = (self._teacher.predictor, self._teacher.state)
        return evaluate(
            predictor,
            state,
            self._images.eval_batches(split, group=group),
            self._images.num_classes,
            self._placement.put_batch,
            reference=reference,
        )

    def final_scores(self, predictor: Predictor, state: nnx.State) -> dict[str, Scores]:
        """Scores with agreement by split, and by group of the test split as "test/group"."""
        data = self._config.data
        found = {
            split: self.scores(predictor, state, split, agreement=True)
            for split in (data.val_split, data.test_split)
            if split
        }
        if data.test_split:
            for group in data.test_groups:
                found[f"{data.test_split}/{group}"] = self.scores(
                    predictor, state, data.test_split, group=group, agreement=True
                )
        return found

    def check_teacher(self, label: str) -> None:
        """Evaluates the teacher before anything is learned from it, and prints its mIoU."""
        teacher, config = self._teacher, self._config
        if teacher is None:
            return
        scores = self.scores(teacher.predictor, teacher.state, config.data.val_split)
        print(
            f"{label}: teacher {teacher.info.name} (width {teacher.info.width}, weights "
            f"{teacher.info.fingerprint}) has {config.data.val_split} mIoU "
            f"{100 * scores.miou:.2f} %"
        )
        if not scores.miou >= config.teacher.min_miou:
            raise UserError(
                f"the teacher's mIoU is {scores.miou:.4f}, below config.teacher.min_miou "
                f"{config.teacher.min_miou}: are these its classes and its weights?"
            )

    def pictures(self, predictor: Predictor, state: nnx.State) -> dict[str, np.ndarray]:
        """Image, label, teacher and student of a few examples, side by side."""
        students = predict_examples(
            predictor, state, self._examples, self._config.data.eval_batch_size
        )
        pictures = {}
        for index, (example, student) in enumerate(zip(self._examples, students, strict=True)):
            predictions = {"student": student}
            if self._taught:
                predictions = {"teacher": self._taught[index], **predictions}
            pictures[f"val/{example['name']}"] = figures.panel_image(
                example["image"], example["label"], predictions, self._images.palette
            )
        return pictures
