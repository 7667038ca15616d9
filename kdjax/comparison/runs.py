"""Plans and trains the runs of a comparison: teacher, tuning, and every method over the seeds."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from kdjax.comparison import equal_time, tuning
from kdjax.comparison.cached_teacher import CachePlan, plan_cache, reads_scores_alone
from kdjax.comparison.equal_time import PLAIN
from kdjax.comparison.parallel import train_all
from kdjax.comparison.tuning import Setting, TuningResult
from kdjax.config import Config, change, default, read, without_terms
from kdjax.data.interface import SegmentationSet
from kdjax.data.run_data import RunData
from kdjax.experiment.run import Run
from kdjax.experiment.scoring import score_checkpoint
from kdjax.experiment.workdir import Workdir
from kdjax.interop import imagenet
from kdjax.models import serialization
from kdjax.models.architectures import EXTRACTORS
from kdjax.models.options import IMAGENET_WEIGHTS
from kdjax.recipes import teacher_of
from kdjax.teachers.loading import open_images
from kdjax.utils import imports, processes, schema
from kdjax.utils.errors import UserError
from kdjax.utils.files import to_json, write_atomically
from kdjax.utils.imports import did_you_mean
from kdjax.utils.log import logger

TEACHER = "teacher"
_TUNING, _EQUAL_TIME = "tuning", "equal_time"
# The keys of `config.data` that decide which images a teacher sees.
_IMAGES = {"name", "options", "data_dir", "train_split", "mixture", "base_size"}


class Comparison(NamedTuple):
    """The finished runs of a comparison.

    Attributes:
      runs: the workdirs of the finished runs, the teacher's first, then by seed. The workdir of a
        teacher that kdjax did not train holds only its scores.
      students: by method, the workdir of its first finished seed; the plain student first.
      choices: the settings that were tried on validation.
      notes: lines on these settings, on runs that diverged, and on the longer plain student.
    """

    runs: list[Workdir]
    students: dict[str, Workdir]
    choices: list[TuningResult]
    notes: list[str]


def run_comparison(
    config: Config,
    workdir: str,
    seeds: Sequence[int],
    parallel: int = 1,
    data: SegmentationSet | None = None,
) -> Comparison:
    """Tunes the methods of a valid config and trains the runs that are not finished.

    The workdir contains `teacher/`, `tuning/<method>/<setting>/seed<N>/`, `<method>/seed<N>/`, and
    `equal_time/<steps>_steps/seed<N>/`, each a workdir of `kdjax.train`, and `teacher_cache/`. The
    choices are kept in `tuning.json` and `equal_time.json`. Students differ only in their terms,
    the weights of these, the changes of their method, and their seed. The teacher and students
    without terms train on labeled images only. Only runs with a chosen setting see the test split.
    The arguments and errors are those of `kdjax.compare`.
    """
    _check_seeds(config, seeds)
    _check_methods(config)
    _check_parallel(config, parallel, data)
    root = Workdir(workdir)
    with root.hold():
        return _Runner(config, root, seeds, parallel, data).run()


@dataclasses.dataclass(frozen=True)
class _Runner:
    """A comparison in a workdir; see `run_comparison`."""

    config: Config
    root: Workdir
    seeds: Sequence[int]
    parallel: int
    data: SegmentationSet | None

    def run(self) -> Comparison:
        """Trains the teacher, tunes the methods, and trains every method over the seeds."""
        config, given = self.config, Workdir(self.root.path / TEACHER)
        _check_teacher(config, given)
        # Check the groups now, since only the runs after tuning read the test split.
        if config.data.test_groups:
            RunData(read(config).data, self.data).test_groups()
        checkpoint = config.teacher.checkpoint
        trains_teacher = not (checkpoint or config.teacher.logits)
        logger.info(_outlook(config, self.seeds, trains_teacher=trains_teacher))
        if trains_teacher:
            checkpoint = self._train_teacher()
        if self._cache.line:
            logger.info(self._cache.line)
        choices = self._tune(checkpoint)
        tuned = [choice for choice in choices if choice.scores]
        if tuned:
            text = to_json([choice.to_dict() for choice in tuned])
            processes.lead(lambda: write_atomically(self.root.path / "tuning.json", text))
        settings = {c.method: best for c in choices if (best := c.best())}
        runs = [
            self._student(name, setting, checkpoint, seed)
            for seed in self.seeds
            for name, setting in settings.items()
        ]
        self._train(runs)
        notes = [choice.describe() for choice in tuned]
        why = []
        if equal_time.is_asked_for(config):
            longer, why = self._train_longer(runs)
            runs += longer
        if config.teacher.checkpoint and not given.config.exists():
            score_checkpoint(read(config), given, checkpoint, TEACHER, self.data)
        for run in runs:
            if run.files.diverged.exists():
                notes.append(f"{run.name}: {run.files.why_diverged()}")
        finished = [run for run in runs if run.files.result.exists()]
        first = {run.method: run.files for run in reversed(finished)}
        names = [_title(config, name) for name in settings]
        return Comparison(
            runs=[
                files for files in (given, *(r.files for r in finished)) if files.result.exists()
            ],
            students={name: first[name] for name in names if name in first},
            choices=choices,
            notes=[*notes, *why],
        )

    @functools.cached_property
    def _cache(self) -> CachePlan:
        """Which methods take the teacher's scores from a cache in the workdir."""
        return plan_cache(read(self.config), self.root.path, self.data)

    def _train(self, runs: Sequence[Run]) -> None:
        self._check_data(runs)
        train_all(runs, self.parallel, self.data)

    def _check_data(self, runs: Sequence[Run]) -> None:
        """Checks that runs which are added see the data of the finished ones.

        Raises:
          UserError: if the data set has changed.
        """
        if all(run.files.result.exists() for run in runs):
            return
        now: dict[str, str] = {}
        for run in runs:
            there, options = run.files.data_fingerprint(), run.options
            if there is None:
                continue
            # `repr`, because a section may hold dicts.
            here = now.get(repr(options.data)) or open_images(options, self.data).fingerprint
            now[repr(options.data)] = here
            if there != here:
                raise UserError(
                    f"{run.files.path} was trained on other data ({there} there, {here} now); "
                    "choose another --workdir"
                )

    def _train_teacher(self) -> str:
        """Trains the teacher by the students' recipe, and returns its checkpoint."""
        teacher = teacher_of(self.config.copy_and_resolve_references())
        with teacher.unlocked():
            teacher.compare = default().compare
            _remove_cache(teacher)
        files = Workdir(self.root.path / TEACHER)
        if not files.result.exists():
            _check_weights(self.config)
        train_all([Run(read(teacher), files, TEACHER, TEACHER, TEACHER)], data=self.data)
        if files.diverged.exists():
            raise UserError(files.why_diverged())
        return str(files.student)

    def _tune(self, checkpoint: str) -> list[TuningResult]:
        """Returns the choice of the plain student, if there is one, and then of the methods."""
        config = self.config
        methods = in_order(config)
        chosen: Setting | None = Setting(
            config.optimizer.learning_rate, config.optimizer.weight_decay
        )
        choices = []
        plain = [name for name, _ in methods if is_plain(config, name)]
        if plain:
            choices = self._try(plain, tuning.plain_settings(config), checkpoint)
            chosen = choices[0].best()
        if chosen is None:
            raise UserError(f"{choices[0].describe()}; try lower config.compare.learning_rates")
        # Without terms, there are no weights to try.
        changed = [name for name, terms in methods if not terms and name not in plain]
        choices = choices + self._try(changed, [chosen], checkpoint)
        distilled = [name for name, terms in methods if terms]
        settings = tuning.method_settings(config, chosen)
        return choices + self._try(distilled, settings, checkpoint)

    def _try(
        self, names: Sequence[str], settings: Sequence[Setting], checkpoint: str
    ) -> list[TuningResult]:
        """Scores all settings of some methods on the validation split."""
        if len(settings) == 1:
            return [TuningResult(name, settings, ()) for name in names]
        planned = {
            name: [
                [
                    self._student(name, setting, checkpoint, seed, among=settings)
                    for seed in self.config.compare.tuning_seeds
                ]
                for setting in settings
            ]
            for name in names
        }
        self._train([run for rows in planned.values() for row in rows for run in row])
        split = self.config.data.val_split
        return [
            TuningResult(name, settings, [[run.files.miou(split) for run in row] for row in rows])
            for name, rows in planned.items()
        ]

    def _train_longer(self, students: Sequence[Run]) -> tuple[list[Run], list[str]]:
        """Trains plain students for as long as the methods take; see `equal_time`."""
        results = [(s.method, s.files.read_result()) for s in students if s.files.result.exists()]
        longer, line = equal_time.longer_students(
            self.root.path / "equal_time.json", results, self.config.steps
        )
        lines = [*filter(None, (line, *(student.reason for student in longer)))]
        for text in lines:
            logger.info(text)
        runs = []
        for student in longer:
            for plain in students:
                if plain.role != "plain":
                    continue
                config = plain.options.to_config()
                config.steps = student.steps
                folder = f"{_EQUAL_TIME}/{student.steps}_steps/seed{config.seed}"
                name = f"{_EQUAL_TIME}, {student.steps} steps, seed {config.seed}"
                files = Workdir(self.root.path / folder)
                runs.append(Run(read(config), files, name, student.name, "plain"))
        self._train(runs)
        return runs, lines

    def _student(
        self,
        name: str,
        setting: Setting,
        checkpoint: str,
        seed: int,
        among: Sequence[Setting] = (),
    ) -> Run:
        """Plans a run of a method; with `among`, a run that chooses one of these settings."""
        terms = self.config.compare.methods[name]
        student = self.config.copy_and_resolve_references()
        with student.unlocked():
            student.terms = terms.copy_and_resolve_references()
            student.teacher.checkpoint = checkpoint if terms else ""
            student.seed = seed
            setting.apply(student)
            changes = self.config.compare.changes.to_dict().get(name, {})
            change(student, changes)
            # Methods and seeds may be added later, so the config of a run does not contain them.
            student.compare = default().compare
            if not terms:
                _remove_cache(without_terms(student))
            if among:
                student.data.test_split = ""
            shares = self._cache.path and _asks_the_same(changes)
            if shares and reads_scores_alone(read(student)):
                student.teacher.cache = self._cache.path
        parts = [name, tuning.setting_name(setting, among)] if among else [name]
        folder = "/".join([_TUNING, *parts] if among else parts)
        return Run(
            read(student, tuning=bool(among)),
            Workdir(self.root.path / folder / f"seed{seed}"),
            ", ".join([*parts, f"seed {seed}"]),
            _title(self.config, name),
            "plain" if is_plain(self.config, name) else "distilled",
        )


def is_plain(config: Config, name: str) -> bool:
    """Returns True if a method has neither terms nor changes."""
    return not config.compare.methods[name] and not config.compare.changes.get(name)


def _asks_the_same(changes: Mapping[str, Mapping[str, Any]]) -> bool:
    """Returns True if a method with these changes asks the same teacher about the same images."""
    return "teacher" not in changes and not changes.get("data", {}).keys() & _IMAGES


def in_order(config: Config) -> list[tuple[str, Config]]:
    """Returns the methods and their terms, the plain student first."""
    return sorted(
        config.compare.methods.items(), key=lambda method: not is_plain(config, method[0])
    )


def _title(config: Config, name: str) -> str:
    """Returns the name of a method in tables."""
    return PLAIN if is_plain(config, name) else name


def _remove_cache(config: Config) -> None:
    """Removes the options that a run without a teacher does not read."""
    for key in ("cache", "cache_classes", "logits"):
        config.teacher[key] = default().teacher[key]


def _outlook(config: Config, seeds: Sequence[int], *, trains_teacher: bool) -> str:
    """Returns a line on the number and length of the runs."""
    methods, factors = config.compare.methods, config.compare.weight_factors
    plain_settings = tuning.plain_settings(config)
    tried = [
        len(plain_settings) if is_plain(config, name) else len(factors if terms else ())
        for name, terms in methods.items()
    ]
    tuned = sum(count for count in tried if count > 1) * len(config.compare.tuning_seeds)
    runs = len(methods) * len(seeds)
    parts = [f"{runs} run{'s' if runs > 1 else ''} of {config.steps} steps ({', '.join(methods)})"]
    if tuned:
        parts.insert(0, f"{tuned} runs to choose settings")
    if trains_teacher:
        parts.insert(0, f"a teacher of {config.compare.teacher_steps} steps")
    if equal_time.is_asked_for(config):
        parts.append("plain students for as long as the methods take")
    return (
        f"Training {', then '.join(parts)}. Each run prints the time that is left. If you stop it, "
        "the same command continues."
    )


def _check_weights(config: Config) -> None:
    """Checks that the ImageNet weights of teacher and student are installed."""
    for side in ("student", "teacher"):
        options = getattr(read(config), side)
        if options.backbone == IMAGENET_WEIGHTS:
            imagenet.find(options, f"config.{side}")


def _check_teacher(config: Config, files: Workdir) -> None:
    """Checks that the config names no other teacher than the one trained in the workdir."""
    checkpoint = config.teacher.checkpoint
    if not checkpoint or not files.config.exists():
        return
    given = serialization.fingerprint_in(checkpoint, config.teacher.options.to_dict())
    if given != serialization.fingerprint_in(files.path):
        raise UserError(
            f"config.teacher.checkpoint is {checkpoint}, but {files.path} contains another teacher "
            "that was trained there. Choose another --workdir."
        )


def _check_methods(config: Config) -> None:
    compare = config.compare
    if config.student.name in EXTRACTORS:
        raise UserError(
            f"config.student.name is {config.student.name}, which has no class scores to compare. "
            "Train it with kdjax.train, or choose a network with a head."
        )
    if not compare.methods:
        raise UserError("config.compare.methods is empty. Add a method, as in {'plain': {}}.")
    for name in compare.methods:
        if name in (TEACHER, _TUNING, _EQUAL_TIME):
            raise UserError(f'A method cannot be named "{name}", which is a folder of the workdir.')
        if not isinstance(name, str) or not name or "/" in name or not name.isprintable():
            raise UserError(
                f"A method cannot be named {name!r}, because its folder has the same name. Use "
                "letters, digits, and spaces."
            )
    plain = [name for name in compare.methods if is_plain(config, name)]
    if len(plain) > 1:
        raise UserError(
            f'config.compare.methods "{plain[0]}" and "{plain[1]}" both have no terms, so both are '
            "the plain student. Remove one, or change something in config.compare.changes."
        )
    if not plain and (compare.learning_rates or compare.weight_decays):
        raise UserError(
            "The plain student tries config.compare.learning_rates and weight_decays. Add "
            "'plain': {} to config.compare.methods."
        )
    for method in (name for pair in compare.builds_on.items() for name in pair):
        if method not in compare.methods:
            raise UserError(
                f'config.compare.builds_on names "{method}", which is not in '
                f"config.compare.methods: {did_you_mean(method, compare.methods)}"
            )
    if not (config.teacher.checkpoint or config.teacher.name or config.teacher.logits):
        raise UserError(
            "config.teacher has no checkpoint, no name of a network to train, and no logits. Set "
            "one of them."
        )


def _check_seeds(config: Config, seeds: Sequence[int]) -> None:
    compare = config.compare
    for seed in seeds:
        schema.check_number("--seeds", seed, schema.SEED)
    if not seeds:
        raise UserError("--seeds is empty. Give at least one seed, as in --seeds 0,1,2.")
    for name, given in (("--seeds", seeds), ("config.compare.tuning_seeds", compare.tuning_seeds)):
        if repeated := {seed for seed in given if list(given).count(seed) > 1}:
            raise UserError(f"{name} contains {min(repeated)} twice. Remove one.")
    tried = (compare.learning_rates, compare.weight_decays, compare.weight_factors)
    both = set(seeds) & set(compare.tuning_seeds)
    if both and any(len(values) > 1 for values in tried):
        raise UserError(
            f"Seed {min(both)} is in --seeds and in config.compare.tuning_seeds. Settings chosen "
            "on a seed have an advantage there, so choose another."
        )


def _check_parallel(config: Config, parallel: int, data: SegmentationSet | None) -> None:
    schema.check_number("parallel", parallel, schema.COUNT)
    if parallel > 1 and data is not None:
        raise UserError(
            "data is an object, which parallel processes cannot receive. Name it in "
            'config.data.name, as "package.module:attribute", or set parallel to 1.'
        )
    if parallel > 1 and f"{imports.MAIN}{imports.SEPARATOR}" in config.to_json_best_effort():
        raise UserError(
            "The config names something defined in a notebook or script, which parallel processes "
            "cannot import. Move it to a module, or set parallel to 1."
        )
