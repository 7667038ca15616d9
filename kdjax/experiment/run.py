"""One run: prepares a teacher, plain student, or distilled student, trains it, and finishes it."""

import contextlib
import dataclasses
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax

from kdjax.config import RunOptions
from kdjax.data.interface import SegmentationSet
from kdjax.data.run_data import RunData
from kdjax.distillation import Distiller
from kdjax.evaluation.evaluator import Predictor, Scores
from kdjax.experiment.build import (
    build_distiller,
    build_state,
    build_step,
    check_evaluation,
    with_class_weights,
)
from kdjax.experiment.held_out import HeldOutLoss
from kdjax.experiment.input_pipeline import make_input_pipeline
from kdjax.experiment.scoring import Scoring, inspect
from kdjax.experiment.student import make_student
from kdjax.experiment.workdir import Workdir
from kdjax.models import Network, Variables, serialization
from kdjax.models.batch_norm import with_batch_norm
from kdjax.models.serialization import NetworkInfo
from kdjax.reporting.results import Example, Inspected, Role
from kdjax.reporting.writers import Console, JsonLines, TensorBoard, Writer, Writers, check_writers
from kdjax.teachers.cache import OpenCache, TeacherCache
from kdjax.teachers.loading import Teacher, comparable, load_teacher, open_images
from kdjax.training import optimizer as optimizers
from kdjax.training.checkpoints import Checkpoints
from kdjax.training.label_losses import LossOptions
from kdjax.training.loop import Diverged, Fitted, Hooks, Interruption, Intervals, fit, jit_step
from kdjax.training.profiling import Profile, check_steps, logged_seconds
from kdjax.training.sharding import Placement
from kdjax.training.step import Batch, PreprocessedNetwork, TrainState
from kdjax.utils import environment, processes
from kdjax.utils.classes import iou_of_object, object_iou, of_one_class
from kdjax.utils.errors import Preempted, UserError
from kdjax.utils.log import RunLogger


@dataclasses.dataclass(frozen=True)
class Run:
    """A run that is wanted, finished or not.

    Attributes:
      options: its config.
      files: its directory.
      name: the prefix of its log lines, such as "cwd, seed 0".
      method: its name in tables.
      role: its part in a comparison.
    """

    options: RunOptions
    files: Workdir
    name: str
    method: str
    role: Role


class TrainedRun(NamedTuple):
    """The objects of a finished run that its report needs.

    Attributes:
      images: the data set.
      examples: a few images of the validation split, with the predictions of "teacher" and
        "student".
      inspected: the images to look at in the test split, or else in the validation split.
    """

    images: RunData
    examples: list[Example]
    inspected: Inspected = Inspected()


def train_run(
    run: Run,
    *,
    data: SegmentationSet | None = None,
    writers: Sequence[Writer] = (),
    overwrite: bool = False,
    profiled_steps: tuple[int, int] | None = None,
    patience: float = 0.0,
    extend: bool = False,
) -> TrainedRun | None:
    """Trains the student of a run, or continues where an earlier call stopped.

    A finished run stays as it is, unless `extend` gives it more steps. Afterwards the directory
    holds the student as a network checkpoint (`student/`) and `result.json`. In the main thread,
    SIGTERM and Ctrl-C ask the run to stop. In another thread it goes on to its end.

    Args:
      run: the run.
      data: the data set if it is an object, as `RunData` takes it.
      writers: further writers of numbers and pictures, in the process that leads. The caller closes
        them.
      overwrite: remove an existing run first, as `Workdir.clear` does.
      profiled_steps: the first and the last step to trace into `profile/`.
      patience: seconds to wait for another run in the directory to end.
      extend: continue a run of fewer steps, if no step depends on their number.

    Returns:
      What the report needs, or None if the run was finished before.

    Raises:
      UserError: for a mistake in the config, the data, or the directory, before anything is
        written, and if another run is active in the directory or in this process.
      Diverged: if the loss is no longer finite. The last checkpoint is kept.
      Preempted: if the process was asked to stop. The work is saved.
    """
    check_writers(writers)
    if profiled_steps:
        check_steps(*profiled_steps, run.options.steps)
    log = RunLogger(run.name)
    if overwrite:
        run.files.check_clear(run.options)
    elif _is_done(run, log, extend):
        return None
    with _alone(), run.files.hold(patience):
        # Another process may have finished the run while this one waited.
        if not overwrite and _is_done(run, log, extend):
            return None
        parts = _prepare(run, data, log)
        _announce(parts)
        cache = _claim(parts, overwrite, extend)
        profile = Profile(run.files.profile, *profiled_steps) if profiled_steps else None
        opened = _open(parts, cache, writers)
        # Only now, because what is opened before may set a signal handler of its own.
        with parts.interruption:
            trained, examples = _train(parts, opened, profile)
            _finish(parts, trained, opened.cache)
    return TrainedRun(parts.images, examples, _inspect(parts, trained))


_training = threading.Lock()


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    """Refuses a second run in this process, because Orbax mixes up the checkpoints of two."""
    if not _training.acquire(blocking=False):
        raise UserError(
            "another thread of this process is training: train one run after the other, or each in "
            "a process of its own"
        )
    try:
        yield
    finally:
        _training.release()


def _is_done(run: Run, log: RunLogger, extend: bool) -> bool:
    files = run.files
    if not files.result.exists() or (extend and files.has_fewer_steps(run.options)):
        return False
    files.claim(run.options)
    if files.is_finished():
        log.info(f"already done in {files.path}")
        return True
    files.check_can_be_finished()
    log.warning(
        f"{files.result} or {files.student} is damaged: the run is finished again from its last "
        "checkpoint"
    )
    return False


@dataclasses.dataclass(frozen=True)
class _Parts:
    """The parts of a run, all checked, before anything is written.

    Attributes:
      run: the run.
      log: its log.
      images: its data set.
      loss: the options of its loss, with class weights as numbers.
      placement: its mesh.
      student: the network.
      info: the description of the student.
      state: the state before the first step, on the host.
      teacher: the teacher, if a term needs one.
      distiller: the terms, if there are any.
      cache: the cache of the teacher's maps, if the run uses one.
      scoring: evaluates the student and its teacher.
      held_out: evaluates a student without class scores; None for other students.
      interruption: tells whether the run must stop.
    """

    run: Run
    log: RunLogger
    images: RunData
    loss: LossOptions
    placement: Placement
    student: Network
    info: NetworkInfo
    state: TrainState
    teacher: Teacher | None
    distiller: Distiller | None
    cache: TeacherCache | None
    scoring: Scoring
    held_out: HeldOutLoss | None
    interruption: Interruption


def _prepare(run: Run, data: SegmentationSet | None, log: RunLogger) -> _Parts:
    options = run.options
    images = open_images(options, data)
    loss = with_class_weights(options.loss, images)
    placement = Placement(options.mesh)
    placement.check_batch_size(
        "data.batch_size", options.data.batch_size, accumulate=options.optimizer.accumulate
    )
    placement.check_batch_size("data.eval_batch_size", options.data.eval_batch_size)
    student, variables, info = make_student(
        options, images.class_names, images.palette, images.bands
    )
    student = with_batch_norm(student, options.student.batch_norm, placement.batch_shards)
    teacher = load_teacher(options, images, placement, log)
    distiller = build_distiller(
        options,
        (student, variables),
        teacher and teacher.maps,
        num_classes=images.num_classes,
        channels=(
            info.in_channels,
            teacher.network.info.in_channels if teacher and teacher.network else 0,
        ),
    )
    name = f"config.student {info.name}"
    check_evaluation(options, images, student, variables, name, channels=info.in_channels)
    if scored := comparable(teacher and teacher.network, images):
        name = f"config.teacher {scored.info.name}"
        channels = scored.info.in_channels
        check_evaluation(options, images, scored.network, scored.variables, name, channels=channels)
    cache = None
    if distiller and teacher and teacher.cached:
        cache = TeacherCache(options, images, teacher.cached, distiller, log)
    interruption, state = Interruption(), build_state(options, variables, distiller)
    held_out = None
    if distiller and not info.num_classes:
        held_out = HeldOutLoss(
            options,
            images,
            placement,
            PreprocessedNetwork(student, info.preprocessing),
            state,
            teacher and teacher.network,
            distiller,
            interruption,
        )
    return _Parts(
        run=run,
        log=log,
        images=images,
        loss=loss,
        placement=placement,
        student=student,
        info=info,
        state=state,
        teacher=teacher,
        distiller=distiller,
        cache=cache,
        scoring=Scoring(options, images, placement, scored, interruption),
        held_out=held_out,
        interruption=interruption,
    )


def _announce(parts: _Parts) -> None:
    """Logs what the run is going to do, and the teacher's score."""
    options, log, info = parts.run.options, parts.log, parts.info
    log.info(
        f"trains {info.name} for {options.steps} steps of {options.data.batch_size} images, into "
        f"{parts.run.files.path}"
    )
    if info.initial_weights:
        log.info(f"it begins {info.source.removeprefix('trained by kdjax ')}")
    log.info("the first step is compiled before it runs, which may take minutes")
    if parts.placement.mesh.size > 1:
        log.info(f"mesh {parts.placement.describe()}")
    log.info(parts.images.cache.reason)
    if weights := parts.loss.class_weights:
        named = zip(parts.images.class_names, weights, strict=True)
        log.info(f"class weights {', '.join(f'{name} {weight:.3g}' for name, weight in named)}")
    for line in parts.distiller.describe() if parts.distiller else ():
        log.info(f"loss term {line}")
    for key in () if options.terms else parts.images.unlabelled:
        log.warning(f"config.data.mixture.{key}: no term can learn from it; remove it")
    for split in filter(None, (options.data.val_split, options.data.test_split)):
        if remark := parts.images.slow_evaluation(split):
            log.info(remark)
    parts.scoring.check_teacher(log)


def _claim(parts: _Parts, overwrite: bool, extend: bool) -> OpenCache | None:
    """Makes the directory the run's own, and opens the teacher's cache.

    An existing run is removed only now, after everything else has been checked.
    """
    options, files = parts.run.options, parts.run.files
    if overwrite:
        processes.lead(files.clear)
    if extend and files.has_fewer_steps(options):
        _check_extension(parts)
        processes.lead(lambda: files.extend(options))
    files.claim(options)
    return parts.cache and parts.cache.open()


def _check_extension(parts: _Parts) -> None:
    """Checks that no step of the run depends on the number of steps."""
    options, distiller, files = parts.run.options, parts.distiller, parts.run.files
    dependent = [f"the term {name}" for name in (distiller.depend_on_steps() if distiller else ())]
    if optimizers.depends_on_steps(options.optimizer):
        dependent.insert(0, f'the learning rate of "{options.optimizer.schedule}"')
    if dependent:
        raise UserError(
            f"{files.path} holds a run of {files.read_options().steps} steps, which cannot go on "
            f"to {options.steps}: {dependent[0]} depends on config.steps. To train its student "
            f"further, choose another workdir and set config.student.checkpoint={files.path}"
        )


class _Trained(NamedTuple):
    """The outcome of the training steps.

    Attributes:
      fitted: the last state and the cost of a step.
      student: the variables of the exported student.
      seconds: the time of all starts of the run.
      scores: the scores by split and group.
      losses: in place of scores, the loss by split of a student without class scores.
    """

    fitted: Fitted
    student: Variables
    seconds: float
    scores: dict[str, Scores]
    losses: dict[str, float]


class _Opened(NamedTuple):
    """The open files and the running objects of a training.

    Attributes:
      checkpoints: its checkpoints.
      first_step: the number of steps that are done.
      state: the state after these steps, on the devices.
      own: closes the run's own writers.
      writer: all writers.
      earlier: the log lines of earlier starts.
      teacher: the variables of the teacher that the steps run, or None.
      step_fn: the step, as `jit_step` returns it.
      batches: the batches of the other steps, on the devices.
      cache: the teacher's cached maps, if the run uses them.
    """

    checkpoints: Checkpoints
    first_step: int
    state: TrainState
    own: contextlib.ExitStack
    writer: Writers
    earlier: list[dict[str, Any]]
    teacher: Variables | None
    step_fn: Any
    batches: Iterator[Batch]
    cache: OpenCache | None


def _open(parts: _Parts, cache: OpenCache | None, writers: Sequence[Writer]) -> _Opened:
    """Opens checkpoints, writers, and batches, and makes the step."""
    options, placement = parts.run.options, parts.placement
    checkpoints, first_step, state = _restore(parts)
    own, writer = contextlib.ExitStack(), Writers([])
    # Only the leading process writes.
    if processes.leads():
        writer = Writers([*_own_writers(own, parts.run, first_step), *writers])
    # With a cache, only the evaluation runs the teacher.
    teacher = parts.teacher and parts.teacher.in_step
    pipeline = make_input_pipeline(
        parts.images,
        placement,
        first_step=first_step,
        steps=options.steps,
        seed=options.seed,
        clean_view=teacher is not None and options.teacher.view == "clean",
        cache=cache,
    )
    train_step = build_step(
        dataclasses.replace(options, loss=parts.loss),
        PreprocessedNetwork(parts.student, parts.info.preprocessing),
        teacher and PreprocessedNetwork(teacher.network, teacher.info.preprocessing),
        parts.distiller,
    )
    return _Opened(
        checkpoints=checkpoints,
        first_step=first_step,
        state=state,
        own=own,
        writer=writer,
        earlier=parts.run.files.history() if first_step else [],
        teacher=teacher and teacher.variables,
        step_fn=jit_step(pipeline.attach(train_step), state, placement),
        batches=pipeline.batches,
        cache=cache,
    )


def _train(
    parts: _Parts, opened: _Opened, profile: Profile | None
) -> tuple[_Trained, list[Example]]:
    """Trains to the last step and scores the student that is exported."""
    options, checkpoints = parts.run.options, opened.checkpoints
    predictor = Predictor(parts.student, parts.info.preprocessing)
    started = time.perf_counter()
    try:
        fitted = fit(
            opened.state,
            opened.teacher,
            opened.step_fn,
            opened.batches,
            Intervals(
                options.steps,
                options.log_every,
                options.eval_every,
                options.checkpoint_every,
                options.data.batch_size,
            ),
            Hooks(
                opened.writer,
                lambda step, state: _evaluate(parts, predictor, opened.writer, step, state),
                checkpoints,
                parts.interruption,
                profile,
            ),
            first_step=opened.first_step,
            earlier=opened.earlier,
        )
        seconds = logged_seconds(opened.earlier) + time.perf_counter() - started
        state = fitted.state
        if options.export == "best" and checkpoints.best_step is not None:
            state = checkpoints.restore(checkpoints.best_step, state)
        found, losses, examples = {}, {}, []
        if parts.held_out:
            losses = parts.held_out.final_losses(state)
        else:
            found = parts.scoring.final_scores(predictor, state.student())
            examples = parts.scoring.examples(predictor, state.student())
    finally:
        if profile:
            profile.close()
        error = sys.exc_info()[1]
        # Report the first error, not the failure to close the log that follows from it.
        with contextlib.suppress(OSError) if error else contextlib.nullcontext():
            opened.own.close()
        # Only these two errors reach all processes alike.
        checkpoints.close(wait=error is None or isinstance(error, Diverged | Preempted))
    student = parts.placement.fetch(state.student())
    return _Trained(fitted, student, seconds, found, losses), examples


def _inspect(parts: _Parts, trained: _Trained) -> Inspected:
    data = parts.run.options.data
    split = data.test_split or data.val_split
    scores = trained.scores.get(split)
    return inspect(scores.images, parts.images, split) if scores and scores.images else Inspected()


def _restore(parts: _Parts) -> tuple[Checkpoints, int, TrainState]:
    """Returns the checkpoints, the number of steps that are done, and the state on the devices."""
    files, log, teacher = parts.run.files, parts.log, parts.teacher
    identity = {"data": parts.images.fingerprint, "teacher": teacher and teacher.fingerprint}
    if more := parts.images.train_fingerprints()[1:]:
        identity["mixture"] = ", ".join(f"{fingerprint} {split}" for fingerprint, split in more)
    # The installed packages decide which file of a backbone is read; preprocessing depends on it.
    if sha256 := parts.info.initial_weights.get("sha256"):
        identity["weights"] = sha256
    checkpoints = Checkpoints(files.checkpoints, identity)
    first_step, state, remarks = checkpoints.restore_latest(parts.placement.put_state(parts.state))
    for remark in remarks:
        log.warning(f"{remark}; moved aside")
    if first_step:
        log.info(f"continues after step {first_step}")
    elif files.metrics.exists():
        log.info("begins again: the earlier start ended before its first checkpoint")
    return checkpoints, first_step, state


def _own_writers(own: contextlib.ExitStack, run: Run, first_step: int) -> list[Writer]:
    """Opens the writers that every run has; `own` closes them."""
    resume_step = first_step or None
    made = [
        JsonLines(run.files.metrics, resume_step=resume_step),
        TensorBoard(run.files.tensorboard, resume_step=resume_step),
        Console(run.options.steps, first_step, run.name),
    ]
    for writer in made:
        own.callback(writer.close)
    return [*made]


def _evaluate(
    parts: _Parts, predictor: Predictor, writer: Writers, step: int, state: TrainState
) -> float:
    """Scores a state on the validation split, writes scores and pictures, and returns the mIoU.

    For a student without class scores, it writes the loss, and returns the loss times -1.
    """
    weights, started = state.student(), time.perf_counter()
    split = parts.run.options.data.val_split
    if parts.held_out:
        loss = parts.held_out.loss(state, split)
        seconds = time.perf_counter() - started
        writer.scalars(step, {"val/loss": loss, "val/seconds": seconds})
        return -loss
    scores = parts.scoring.scores(predictor, weights, split)
    pictures = parts.scoring.pictures(predictor, weights)
    writer.scalars(
        step,
        {
            **(
                {"val/miou": scores.miou, "val/pixel_accuracy": scores.pixel_accuracy}
                if parts.images.labeled_split(split)
                else {"val/agreement_miou": scores.miou, "val/agreement": scores.pixel_accuracy}
            ),
            **{
                f"val/iou_{name}": value
                for name, value in object_iou(parts.info.class_names, scores.iou).items()
            },
            "val/seconds": time.perf_counter() - started,
        },
    )
    writer.images(step, pictures)
    return scores.miou


def _finish(parts: _Parts, trained: _Trained, cache: OpenCache | None) -> None:
    """Writes the student and the result, and logs the scores."""
    run, options, teacher = parts.run, parts.run.options, parts.teacher
    fitted = trained.fitted

    def write() -> None:
        serialization.save(run.files.student, parts.info, trained.student)
        run.files.write_result(
            {
                "role": run.role,
                "method": run.method,
                "seed": options.seed,
                "steps": options.steps,
                "learning_rate": options.optimizer.learning_rate,
                "parameters": sum(x.size for x in jax.tree.leaves(trained.student["params"])),
                "seconds": trained.seconds,
                "step_seconds": fitted.step_seconds,
                "step_processor_seconds": fitted.step_processor_seconds,
                "images_per_second": fitted.images_per_second,
                "platform": jax.default_backend(),
                "config_fingerprint": options.fingerprint,
                "data": parts.images.fingerprint,
                "step_flops": fitted.step_flops,
                "step_bytes": fitted.step_bytes,
                "teacher": teacher and [teacher.source, teacher.fingerprint],
                "teacher_cache": cache
                and {"megabytes": cache.num_bytes / 1e6, "seconds": cache.seconds},
                "weights": dict(parts.info.initial_weights),
                "scores": {split: value.as_dict() for split, value in trained.scores.items()},
                "inspected": {
                    split: value.images.as_dict(parts.images.names(split))
                    for split, value in trained.scores.items()
                    if value.images
                },
                **({"losses": trained.losses} if trained.losses else {}),
                "versions": environment.describe(),
            }
        )

    # The other processes wait, because the student may be the next run's teacher.
    processes.lead(write)
    for split, loss in trained.losses.items():
        parts.log.info(f"{split} loss {loss:.4f}")
    for split, value in trained.scores.items():
        labeled = parts.images.labeled_split(split.partition("/")[0])
        accuracy = "pixel accuracy" if labeled else "agreement with the teacher"
        against = "" if labeled else " against the teacher's labels"
        parts.log.info(
            f"{split} mIoU{against} {100 * value.miou:.2f} %{of_one_class(value.iou)}, "
            f"{accuracy} {100 * value.pixel_accuracy:.2f} %"
            f"{iou_of_object(parts.info.class_names, value.iou)}"
        )
    parts.interruption.check(f"the run in {run.files.path} is done")
