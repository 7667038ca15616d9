"""Methods side by side: one teacher, and every method of a config over its seeds."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from kdjax.comparison import scheduler, tuning
from kdjax.comparison.scheduler import Job
from kdjax.comparison.tuning import EQUAL_TIME, PLAIN, Setting, TuningResult
from kdjax.config import Config, default, read, without_terms
from kdjax.data.images import Images
from kdjax.data.interface import SegmentationSet
from kdjax.experiment.scoring import score_checkpoint
from kdjax.experiment.workdir import Workdir
from kdjax.interop import imagenet
from kdjax.models import serialization
from kdjax.models.options import IMAGENET_WEIGHTS
from kdjax.recipes import teacher_of
from kdjax.reporting.results import Example
from kdjax.utils import imports, processes, schema
from kdjax.utils.errors import UserError
from kdjax.utils.files import read_json, to_json, write_atomically
from kdjax.utils.imports import did_you_mean
from kdjax.utils.log import logger

TEACHER = "teacher"
RESERVED = (TEACHER, "tuning", "equal_time")


class Comparison(NamedTuple):
    """What a comparison came to.

    Attributes:
      runs: the workdirs of the finished runs, the teacher's first, then by seed. That of a teacher
        that was given holds its scores alone, if its classes are those of the data.
      students: of each method the workdir of its first finished seed, the plain student first.
      predicted: of those among them, and of the teacher, that this process trained, a few examples
        with what "student", and perhaps "teacher", predicts.
      choices: what was tried on validation.
      notes: lines on what was tried, and on runs that diverged.
    """

    runs: list[Workdir]
    students: dict[str, Workdir]
    predicted: dict[str, list[Example]]
    choices: list[TuningResult]
    notes: list[str]


def run_sweep(
    config: Config,
    workdir: str,
    seeds: Sequence[int],
    parallel: int = 1,
    data: SegmentationSet | None = None,
) -> Comparison:
    """Tunes and trains what is missing of a comparison.

    Layout: `teacher/`, `tuning/<method>/<setting>/seed<N>/`, `<method>/seed<N>/` and
    `equal_time/seed<N>/` in the workdir, each a workdir of `kdjax.train`, beside `tuning.json` and
    `equal_time.json`, which keep what was picked. A method is a name in
    `config.compare.methods` with its terms; the one without terms is the plain student. Students
    differ in nothing but their terms, the weights of these, and their seed; the teacher and plain
    students have batches of labelled sets alone. The validation split picks, and only runs with a
    picked setting see the test split.

    Args:
      config: as `kdjax.config.default` makes it.
      workdir: where everything is written.
      seeds: those of the runs that are reported.
      parallel: how many runs to have at once; see `kdjax.comparison.scheduler`.
      data: as `kdjax.data.images.Images` takes it; None with runs at once.

    Raises:
      UserError: for a mistake in the config, or a workdir of another comparison; also while
        another process is at work in the workdir.
      Preempted: when the process was asked to stop; what was done is saved.
      Transient: when what did not end well may be tried again.
    """
    options = read(config)
    _check(config, seeds)
    schema.check_number("parallel", parallel, schema.COUNT)
    if data is not None and parallel > 1:
        raise UserError(
            "data is an object, which the processes of parallel runs cannot be given; name it in "
            'config.data.name, as "package.module:attribute", or leave parallel at 1'
        )
    if parallel > 1 and f"{imports.MAIN}{imports.SEPARATOR}" in options.stored:
        raise UserError(
            "the config names what a notebook or a script defines, which the processes of parallel "
            "runs cannot import; put it into a module of its own, or leave parallel at 1"
        )
    root = Workdir(workdir)
    with root.hold():
        return _compare(config, root, seeds, parallel, data)


def _compare(
    config: Config, root: Workdir, seeds: Sequence[int], parallel: int, data: SegmentationSet | None
) -> Comparison:
    given = Workdir(root.path / TEACHER)
    _check_teacher(config, given)
    # Before anything is trained: only the runs that are reported read the test split.
    if config.data.test_groups:
        Images(read(config).data, data).test_groups()
    teacher = _teacher_job(config, root)
    logger.info(tuning.outlook(config, seeds, teacher.options.steps if teacher else None))
    checkpoint = config.teacher.checkpoint
    predicted = {}
    if teacher:
        if not teacher.files.result.exists():
            _check_weights(config)
        predicted = scheduler.run([teacher], data=data)
        if teacher.files.diverged.exists():
            raise UserError(teacher.files.why_diverged())
        checkpoint = str(teacher.files.student)
    choices = _tune(config, root, checkpoint, parallel, data)
    _write_choices(root, choices)
    settings = {choice.method: choice.best() for choice in choices}

    order = [name for name, _ in in_order(config.compare.methods) if settings[name]]
    students = [
        _student_job(config, root, name, setting, checkpoint, seed)
        for seed in seeds
        for name in order
        if (setting := settings[name])
    ]
    predicted |= scheduler.run(students, parallel, data)
    equal_time = []
    if tuning.asks_equal_time(config):
        steps, why = _equal_time(config, root, students)
        equal_time = [why]
        logger.info(why)
        longer = [
            _equal_time_job(root, job, steps) for job in students if steps and job.role == "plain"
        ]
        predicted |= scheduler.run(longer, parallel, data)
        students += longer
    if config.teacher.checkpoint and not given.config.exists():
        score_checkpoint(read(config), given, checkpoint, TEACHER, data)
    finished = [job for job in students if job.files.result.exists()]
    runs = [given, *(job.files for job in finished)]
    first = {job.method: job for job in reversed(finished)}
    shown = [*([teacher] if teacher else []), *first.values()]
    return Comparison(
        runs=[files for files in runs if files.result.exists()],
        students={name: first[name].files for name in map(_title(config), order) if name in first},
        predicted={job.method: predicted[job.name] for job in shown if job.name in predicted},
        choices=choices,
        notes=[*_notes(choices, students), *equal_time],
    )


def _check_weights(config: Config) -> None:
    """Requires ImageNet weights that are asked for, also those that only students take later."""
    for side in ("student", "teacher"):
        options = getattr(read(config), side)
        if options.backbone == IMAGENET_WEIGHTS:
            imagenet.find(options, f"config.{side}")


def _check_teacher(config: Config, files: Workdir) -> None:
    """Requires a given teacher to be the one that was trained in the workdir, if one was.

    The result of that training would otherwise be replaced by the scores of the given teacher.
    """
    checkpoint = config.teacher.checkpoint
    if not checkpoint or not files.config.exists():
        return
    if serialization.fingerprint_in(checkpoint) != serialization.fingerprint_in(files.path):
        raise UserError(
            f"config.teacher.checkpoint is {checkpoint}, but {files.path} holds another teacher, "
            "which was trained there; choose another --workdir"
        )


def in_order(methods: Config) -> list[tuple[str, Config]]:
    """Methods and their terms, the plain student first: every other is measured against it."""
    return sorted(methods.items(), key=lambda method: len(method[1]) > 0)


def _check(config: Config, seeds: Sequence[int]) -> None:
    for seed in seeds:
        schema.check_number("--seeds", seed, schema.SEED)
    if not config.compare.methods:
        raise UserError("config.compare.methods is empty; name a method, as {'plain': {}}")
    for name in config.compare.methods:
        if name in RESERVED:
            raise UserError(f'a method cannot be called "{name}", which is a folder of the workdir')
        if not isinstance(name, str) or not name or "/" in name or not name.isprintable():
            raise UserError(
                f"a method cannot be called {name!r}, since a folder is called as it: use letters, "
                "digits and spaces"
            )
    plain = [name for name, terms in config.compare.methods.items() if not terms]
    if len(plain) > 1:
        raise UserError(
            f'config.compare.methods "{plain[0]}" and "{plain[1]}" both have no terms: each is the '
            "plain student, whose runs would count twice, so remove one"
        )
    if not seeds:
        raise UserError("--seeds is empty; name a seed, as --seeds 0,1,2")
    for name, given in (("seeds", seeds), ("tuning_seeds", config.compare.tuning_seeds)):
        if twice := {seed for seed in given if list(given).count(seed) > 1}:
            raise UserError(
                f"seed {min(twice)} stands twice in the {name.replace('_', ' ')}; the same run "
                "twice tells nothing about chance, so name each once"
            )
    if _is_tuned(config) and (both := set(seeds) & set(config.compare.tuning_seeds)):
        raise UserError(
            f"seed {min(both)} is to be reported and stands in config.compare.tuning_seeds too; "
            "what was picked on a seed flatters it, so take another"
        )
    for name, base in config.compare.builds_on.items():
        for method in (name, base):
            if method not in config.compare.methods:
                raise UserError(
                    f'config.compare.builds_on names "{method}", which is not in '
                    f"config.compare.methods; {did_you_mean(method, config.compare.methods)}"
                )
    tries = [*config.compare.learning_rates, *config.compare.weight_decays]
    if tries and all(len(terms) for terms in config.compare.methods.values()):
        raise UserError(
            "config.compare.learning_rates and weight_decays are tried by the plain student; add "
            "'plain': {} to config.compare.methods"
        )
    if not (config.teacher.checkpoint or config.teacher.name or config.teacher.logits):
        raise UserError(
            "config.teacher names neither a checkpoint nor a network to train as the teacher, nor "
            "logits"
        )


def _is_tuned(config: Config) -> bool:
    tried = (config.compare.learning_rates, config.compare.weight_decays)
    return any(len(values) > 1 for values in (*tried, config.compare.weight_factors))


def _tune(
    config: Config, root: Workdir, checkpoint: str, parallel: int, data: SegmentationSet | None
) -> list[TuningResult]:
    """The choices of the plain student, if there is one, and then of the methods."""
    methods = in_order(config.compare.methods)
    plain = [name for name, terms in methods if not terms]
    distilled = [name for name, terms in methods if terms]
    untuned = Setting(config.optimizer.learning_rate, config.optimizer.weight_decay)

    def tune(names: Sequence[str], settings: Sequence[Setting]) -> list[TuningResult]:
        found = {
            name: [
                [
                    _student_job(config, root, name, setting, checkpoint, seed, settings)
                    for seed in config.compare.tuning_seeds
                ]
                for setting in settings
            ]
            for name in names
        }
        if len(settings) == 1:
            return [TuningResult(name, settings, ()) for name in names]
        scheduler.run(
            [job for rows in found.values() for row in rows for job in row], parallel, data
        )
        return [
            TuningResult(
                name,
                settings,
                [[job.files.miou(config.data.val_split) for job in row] for row in rows],
            )
            for name, rows in found.items()
        ]

    choices = tune(plain, tuning.plain_settings(config))
    chosen = choices[0].best() if choices else untuned
    if chosen is None:
        raise UserError(f"{choices[0].describe()}; try lower config.compare.learning_rates")
    return choices + tune(distilled, tuning.method_settings(config, chosen))


def _write_choices(root: Workdir, choices: Sequence[TuningResult]) -> None:
    tuned = [choice for choice in choices if choice.scores]
    if tuned:
        processes.lead(lambda: write_atomically(root.path / "tuning.json", tuning.to_json(tuned)))


def _notes(choices: Sequence[TuningResult], students: Sequence[Job]) -> list[str]:
    notes = [choice.describe() for choice in choices if choice.scores]
    for job in students:
        if job.files.diverged.exists():
            notes.append(f"{job.name}: {job.files.why_diverged()}")
    return notes


def _equal_time(config: Config, root: Workdir, students: Sequence[Job]) -> tuple[int | None, str]:
    """Returns the steps of the longer plain student and a line on them, as `tuning.equal_time`.

    The cost of each method's step is measured once and kept, so that seeds that join later have as
    many steps. A costlier method that joins later leads to more steps.
    """
    path = root.path / "equal_time.json"
    found = [(job.method, job.files.read_result()) for job in students if job.files.result.exists()]
    unit, measured = tuning.step_costs(found)
    kept = read_json(path).get(unit, {}) if path.exists() else {}
    costs = measured | kept
    steps, why = tuning.equal_time(unit, {key: costs[key] for key in measured}, config.steps)

    def write() -> None:
        write_atomically(path, to_json({"steps": steps, unit: costs, "why": why}))

    processes.lead(write)
    return steps, why


def _equal_time_job(root: Workdir, plain: Job, steps: int) -> Job:
    config = plain.options.to_config()
    config.steps = steps
    longer = read(config)
    seed = plain.files.path.name
    files = Workdir(root.path / "equal_time" / seed)
    # A costlier method has joined since.
    if files.config.exists() and files.read_options().steps != steps:
        files = Workdir(root.path / "equal_time" / f"{steps}_steps" / seed)
    return Job(longer, files, f"equal_time, seed {longer.seed}", EQUAL_TIME, "plain")


def _teacher_job(config: Config, root: Workdir) -> Job | None:
    """The teacher's own training: the students' recipe with its network, steps and rate."""
    if config.teacher.checkpoint or config.teacher.logits:
        return None
    teacher = teacher_of(config.copy_and_resolve_references())
    with teacher.unlocked():
        _forget_comparison(teacher)
        _forget_cache(teacher)
    return Job(read(teacher), Workdir(root.path / TEACHER), TEACHER, TEACHER, TEACHER)


def _student_job(
    config: Config,
    root: Workdir,
    name: str,
    setting: Setting,
    teacher: str,
    seed: int,
    among: Sequence[Setting] = (),
) -> Job:
    """A run of a method; one of those that choose among settings leaves the test split alone."""
    terms = config.compare.methods[name]
    student = config.copy_and_resolve_references()
    with student.unlocked():
        student.terms = terms.copy_and_resolve_references()
        student.teacher.checkpoint = teacher if terms else ""
        student.seed = seed
        setting.apply(student)
        _forget_comparison(student)
        if not terms:
            _forget_cache(without_terms(student))
        if among:
            student.data.test_split = ""
    place, label = name, f"{name}, seed {seed}"
    if among:
        place = f"tuning/{name}/{tuning.setting_name(setting, among)}"
        label = f"{name}, {tuning.setting_name(setting, among)}, seed {seed}"
    return Job(
        read(student, tuning=bool(among)),
        Workdir(root.path / place / f"seed{seed}"),
        label,
        _title(config)(name),
        "distilled" if terms else "plain",
    )


def _title(config: Config) -> Callable[[str], str]:
    """What a method is called in tables."""
    return lambda name: name if config.compare.methods[name] else PLAIN


def _forget_comparison(run: Config) -> None:
    """Leaves out what only a comparison reads, so that more methods or seeds may join later."""
    run.compare = default().compare


def _forget_cache(run: Config) -> None:
    """Leaves out what a run without a teacher does not read, so that it serves with and without."""
    for key in ("cache", "cache_classes", "logits"):
        run.teacher[key] = default().teacher[key]
