"""One run from its config to its report: trains a teacher, a plain student or a distilled one."""

import contextlib
import dataclasses
import sys
import threading
import time
from collections.abc import Iterator, Sequence

import jax
from etils import epath

from kdjax import config as configuration
from kdjax.config import Config, RunOptions, read, validate
from kdjax.data.images import Images
from kdjax.data.interface import SegmentationSet
from kdjax.distillation import Distiller
from kdjax.evaluation.evaluator import Predictor
from kdjax.experiment.assembly import (
    assemble_distiller,
    assemble_state,
    assemble_step,
    check_evaluation,
    make_input_pipeline,
    make_student,
)
from kdjax.experiment.scoring import Scoring
from kdjax.experiment.workdir import Workdir
from kdjax.models import serialization
from kdjax.models.batch_norm import with_batch_norm
from kdjax.reporting.results import Example, Role
from kdjax.reporting.writers import Console, JsonLines, TensorBoard, Writer, Writers, check_writers
from kdjax.teachers.cache import NetworkScores, TeacherCache
from kdjax.teachers.loading import comparable, load_teacher, precomputed_logits
from kdjax.training import optimizer as optimizers
from kdjax.training.checkpoints import Checkpoints
from kdjax.training.loop import Diverged, Interruption, fit
from kdjax.training.profiling import Profile, check_steps, logged_seconds
from kdjax.training.sharding import Placement
from kdjax.training.step import PreprocessedNetwork, TrainState
from kdjax.utils import environment, processes
from kdjax.utils.classes import of_one_class
from kdjax.utils.errors import Preempted, UserError
from kdjax.utils.log import RunLogger


@dataclasses.dataclass(frozen=True)
class TrainedRun:
    """What a run that has just ended has in memory, for its report.

    Attributes:
      images: its data set.
      examples: a few of the validation split, with what "teacher" and "student" predict.
    """

    images: Images
    examples: list[Example]


def train(
    config: Config,
    workdir: epath.PathLike,
    *,
    name: str,
    method: str,
    role: Role,
    data: SegmentationSet | None = None,
    writers: Sequence[Writer] = (),
    overwrite: bool = False,
    profiled_steps: tuple[int, int] | None = None,
    patience: float = 0.0,
    extend: bool = False,
) -> TrainedRun | None:
    """Trains the student of a config, or continues where an earlier call stopped.

    A finished run is left as it is, unless `extend` gives it more steps. Afterwards the workdir
    holds the student as a network checkpoint (`student/`), and `result.json`. In the main thread of
    Python, SIGTERM and Ctrl-C ask it to stop; in another thread it goes on until its end, or that
    of the process.

    Args:
      config: as `kdjax.config.default` makes it.
      workdir: where everything is written.
      name: what its log calls it.
      method: what the run is called in tables.
      role: what it is there for.
      data: as `Images` takes it.
      writers: take numbers and pictures too, in the process that leads; whoever made them closes
        them.
      overwrite: remove the run that is there, finished or not, as `Workdir.clear` does.
      profiled_steps: the first and the last step to trace into `profile/`.
      patience: seconds to wait for another run in the workdir that is about to end.
      extend: continue a run of fewer steps, if no step depends on their number.

    Returns:
      What its report needs; None where the run was finished before.

    Raises:
      UserError: for a mistake in the config, the data or the workdir; nothing is written then.
        Also while another run is at work in the workdir, or in this process.
      Diverged: when the loss is no longer a number; the last checkpoint is kept.
      Preempted: when the process was asked to stop; what was done is saved.
    """
    validate(config)
    check_writers(writers)
    if profiled_steps:
        check_steps(*profiled_steps, config.steps)
    files, log = Workdir(workdir), RunLogger(name)
    if overwrite:
        files.check_clear(config)
    elif _is_done(config, files, log, extend):
        return None
    with _alone(), files.hold(patience):
        # Whoever was at work there may have come to the end.
        if not overwrite and _is_done(config, files, log, extend):
            return None
        return _train(
            config, files, log, method, role, data, writers, overwrite, profiled_steps, extend
        )


_training = threading.Lock()


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    """Refuses a second run in this process: Orbax mixes up the checkpoints of two at a time."""
    if not _training.acquire(blocking=False):
        raise UserError(
            "another thread of this process is training: train one run after the other, or each in "
            "a process of its own"
        )
    try:
        yield
    finally:
        _training.release()


def _is_done(config: Config, files: Workdir, log: RunLogger, extend: bool) -> bool:
    if not files.result.exists() or (extend and files.has_fewer_steps(config)):
        return False
    files.claim(config)
    if files.is_finished():
        log.info(f"already done in {files.path}")
        return True
    files.check_can_be_finished()
    log.warning(
        f"{files.result} or {files.student} is damaged: the run is finished again from its last "
        "checkpoint"
    )
    return False


def _train(
    config: Config,
    files: Workdir,
    log: RunLogger,
    method: str,
    role: Role,
    data: SegmentationSet | None,
    writers: Sequence[Writer],
    overwrite: bool,
    profiled_steps: tuple[int, int] | None,
    extend: bool,
) -> TrainedRun:
    options = read(config)
    profile = Profile(files.profile, *profiled_steps) if profiled_steps else None
    images = Images(options.data, data)
    placement = Placement(options.mesh)
    placement.check_batch_size(
        "data.batch_size", options.data.batch_size, accumulate=options.optimizer.accumulate
    )
    placement.check_batch_size("data.eval_batch_size", options.data.eval_batch_size)
    student, variables, info = make_student(options, images.class_names, images.palette)
    student = with_batch_norm(student, options.student.batch_norm, placement.batch_shards)
    precomputed = precomputed_logits(options, images)
    teacher = None if precomputed else load_teacher(options, images, placement, log)
    distiller = assemble_distiller(
        options,
        (student, variables),
        precomputed.specs if precomputed else teacher and (teacher.network, teacher.variables),
        num_classes=images.num_classes,
    )
    check_evaluation(options, images, student, variables, f"config.student {info.name}")
    if scored := comparable(teacher, images):
        name = f"config.teacher {scored.info.name}"
        check_evaluation(options, images, scored.network, scored.variables, name)
    state = assemble_state(options, variables, distiller)
    scores = precomputed
    teacher_source = precomputed and [options.teacher.logits, precomputed.fingerprint]
    if teacher:
        teacher_source = [options.teacher.checkpoint, teacher.info.fingerprint]
        if options.teacher.cache:
            scores = NetworkScores(options, images, teacher)
    cache = None
    if distiller and scores:
        cache = TeacherCache(options, images, scores, distiller, log)
    interruption = Interruption()
    scoring = Scoring(options, images, placement, scored, interruption)
    steps, batch = options.steps, options.data.batch_size
    log.info(f"trains {info.name} for {steps} steps of {batch} images, into {files.path}")
    if info.initial_weights:
        log.info(f"it begins {info.source.removeprefix('trained by kdjax ')}")
    log.info("the first step is compiled before it runs, which may take minutes")
    if placement.mesh.size > 1:
        log.info(f"mesh {placement.describe()}")
    log.info(images.cache.reason)
    for line in distiller.describe() if distiller else ():
        log.info(f"loss term {line}")
    for key in () if options.terms else images.unlabelled:
        log.warning(f"config.data.mixture.{key}: no term is there to learn from it; leave it out")
    for split in filter(None, (options.data.val_split, options.data.test_split)):
        if remark := images.slow_evaluation(split):
            log.info(remark)
    scoring.check_teacher(log)
    # Not before all is checked that can be: what is there is lost then.
    if overwrite:
        processes.lead(files.clear)
    if extend and files.has_fewer_steps(config):
        _check_extension(options, distiller, files)
        processes.lead(lambda: files.extend(config))
    files.claim(config)
    cached_scores = cache and cache.open()

    state = placement.put_state(state)
    identity = {"data": images.fingerprint, "teacher": teacher_source and teacher_source[1]}
    # Which of a backbone's files is taken depends on what is installed; preprocessing goes by it.
    if sha256 := info.initial_weights.get("sha256"):
        identity["weights"] = sha256
    checkpoints = Checkpoints(files.checkpoints, identity)
    first_step, state, remarks = checkpoints.restore_latest(state)
    for remark in remarks:
        log.warning(f"{remark}; moved aside")
    if first_step:
        log.info(f"continues after step {first_step}")
    elif files.metrics.exists():
        log.info("begins again: the earlier start ended before its first checkpoint")
    own, writer = contextlib.ExitStack(), Writers([])
    # Those of the other processes write nothing.
    if processes.leads():
        own_writers = _own_writers(own, files, options.steps, first_step, log.run)
        writer = Writers([*own_writers, *writers])
    earlier = files.history() if first_step else []
    predictor = Predictor(student, info.preprocessing)

    def evaluate_state(step: int, state: TrainState) -> float:
        weights, started = state.student(), time.perf_counter()
        scores = scoring.scores(predictor, weights, options.data.val_split)
        pictures = scoring.pictures(predictor, weights)
        writer.scalars(
            step,
            {
                "val/miou": scores.miou,
                "val/pixel_accuracy": scores.pixel_accuracy,
                "val/seconds": time.perf_counter() - started,
            },
        )
        writer.images(step, pictures)
        return scores.miou

    # With cached scores, only evaluation runs the teacher.
    step_teacher = None if cached_scores else teacher
    train_step = assemble_step(
        options,
        PreprocessedNetwork(student, info.preprocessing),
        step_teacher and PreprocessedNetwork(step_teacher.network, step_teacher.info.preprocessing),
        distiller,
    )
    pipeline = make_input_pipeline(
        images,
        placement,
        first_step=first_step,
        steps=options.steps,
        seed=options.seed,
        clean_view=step_teacher is not None and options.teacher.view == "clean",
        scores=cached_scores,
    )
    started = time.perf_counter()
    with interruption:
        try:
            fitted = fit(
                state,
                step_teacher and step_teacher.variables,
                pipeline.attach(train_step),
                pipeline.batches,
                batch_size=options.data.batch_size,
                first_step=first_step,
                steps=options.steps,
                log_every=options.log_every,
                eval_every=options.eval_every,
                checkpoint_every=options.checkpoint_every,
                placement=placement,
                log=writer,
                evaluate=evaluate_state,
                checkpoints=checkpoints,
                interruption=interruption,
                profile=profile,
                earlier=earlier,
            )
            seconds = logged_seconds(earlier) + time.perf_counter() - started
            state = fitted.state
            if options.export == "best" and checkpoints.best_step is not None:
                state = checkpoints.restore(checkpoints.best_step, state)
            scores = scoring.final_scores(predictor, state.student())
            examples = scoring.examples(predictor, state.student())
        finally:
            if profile:
                profile.close()
            error = sys.exc_info()[1]
            # Report the first error, not the failure to close the log that follows from it.
            with contextlib.suppress(OSError) if error else contextlib.nullcontext():
                own.close()
            # All processes agree on these two.
            checkpoints.close(wait=error is None or isinstance(error, Diverged | Preempted))
        trained = placement.fetch(state.student())

        def finish() -> None:
            serialization.save(files.student, info, trained)
            files.write_result(
                {
                    "role": role,
                    "method": method,
                    "seed": options.seed,
                    "steps": options.steps,
                    "learning_rate": options.optimizer.learning_rate,
                    "parameters": sum(x.size for x in jax.tree.leaves(state.params["student"])),
                    "seconds": seconds,
                    "step_seconds": fitted.step_seconds,
                    "step_processor_seconds": fitted.step_processor_seconds,
                    "images_per_second": fitted.images_per_second,
                    "platform": jax.default_backend(),
                    "config_fingerprint": configuration.fingerprint(config),
                    "step_flops": fitted.step_flops,
                    "step_bytes": fitted.step_bytes,
                    "teacher": teacher_source,
                    "weights": dict(info.initial_weights),
                    "scores": {split: value.as_dict() for split, value in scores.items()},
                    "versions": environment.describe(),
                }
            )

        # For which the others wait: the student may be the next one's teacher.
        processes.lead(finish)
        for split, value in scores.items():
            log.info(
                f"{split} mIoU {100 * value.miou:.2f} %{of_one_class(value.iou)}, "
                f"pixel accuracy {100 * value.pixel_accuracy:.2f} %"
            )
        interruption.check(f"the run in {files.path} is done")
    return TrainedRun(images, examples)


def _check_extension(options: RunOptions, distiller: Distiller | None, files: Workdir) -> None:
    """Requires that no step of the run depends on the number of steps."""
    dependent = [f"the term {name}" for name in (distiller.depend_on_steps() if distiller else ())]
    if optimizers.depends_on_steps(options.optimizer):
        dependent.insert(0, f'the learning rate of "{options.optimizer.schedule}"')
    if dependent:
        raise UserError(
            f"{files.path} holds a run of {files.read_config().steps} steps, which cannot go on to "
            f"{options.steps}: {dependent[0]} depends on config.steps. To train its student "
            f"further, choose another workdir and set config.student.checkpoint={files.path}"
        )


def _own_writers(
    own: contextlib.ExitStack, files: Workdir, steps: int, first_step: int, run: str
) -> list[Writer]:
    """Those that every run has; `own` closes them."""
    resume_step = first_step or None
    made = [
        JsonLines(files.metrics, resume_step=resume_step),
        TensorBoard(files.tensorboard, resume_step=resume_step),
        Console(steps, first_step, run),
    ]
    for writer in made:
        own.callback(writer.close)
    return [*made]
