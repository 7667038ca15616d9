"""Methods side by side: one teacher, and every method of a config over its seeds."""

from collections.abc import Sequence

from ml_collections import ConfigDict

from kdjax.config import Config
from kdjax.errors import UserError
from kdjax.experiments.run import train
from kdjax.experiments.workdir import Workdir

TEACHER = "teacher"
PLAIN = "plain student"


def compare(config: Config, workdir: str, seeds: Sequence[int]) -> list[Workdir]:
    """Trains what is missing of a comparison and returns the workdirs of all its runs.

    Layout: `teacher/` and `<method>/seed<N>/` in the workdir, each a workdir of `kdjax.train`. A
    method is a name in `config.compare.methods` with its terms; one without terms is the plain
    student. Students differ in nothing but their terms and their seed.

    Raises:
      UserError: for a mistake in the config, or a workdir of another comparison.
    """
    root = Workdir(workdir)
    if not config.compare.methods:
        raise UserError("config.compare.methods is empty; name a method, as {'plain': {}}")
    if not seeds:
        raise UserError("--seeds is empty; name a seed, as --seeds 0,1,2")
    runs = []
    checkpoint = config.teacher.checkpoint
    if not checkpoint:
        if not config.teacher.name:
            raise UserError(
                "config.teacher names neither a checkpoint nor a network to train as the teacher"
            )
        files = Workdir(root.path / TEACHER)
        train(_teacher_config(config), str(files.path), label=TEACHER, method=TEACHER, role=TEACHER)
        checkpoint = str(files.student)
        runs.append(files)
    for seed in seeds:
        for name, terms in in_order(config.compare.methods):
            files = Workdir(root.path / name / f"seed{seed}")
            train(
                _student_config(config, terms, checkpoint, seed),
                str(files.path),
                label=f"{name}, seed {seed}",
                method=name if terms else PLAIN,
                role="taught" if terms else "plain",
            )
            runs.append(files)
    return runs


def in_order(methods: Config) -> list[tuple[str, Config]]:
    """Methods and their terms, the plain student first: every other is measured against it."""
    return sorted(methods.items(), key=lambda method: len(method[1]))


def _teacher_config(config: Config) -> Config:
    """The teacher's own training: the students' recipe with its network, steps and rate."""
    teacher = config.copy_and_resolve_references()
    with teacher.unlocked():
        for key in ("name", "width", "dtype"):
            teacher.student[key] = config.teacher[key]
        teacher.student.checkpoint = teacher.student.backbone = ""
        teacher.teacher.name = ""
        teacher.terms = ConfigDict()
        teacher.steps = config.compare.teacher_steps
        teacher.optimizer.learning_rate = config.compare.teacher_learning_rate
        teacher.compare.methods = ConfigDict()
    return teacher


def _student_config(config: Config, terms: Config, teacher: str, seed: int) -> Config:
    student = config.copy_and_resolve_references()
    with student.unlocked():
        student.terms = terms.copy_and_resolve_references()
        student.teacher.checkpoint = teacher if terms else ""
        student.seed = seed
        student.compare.methods = ConfigDict()
    return student
