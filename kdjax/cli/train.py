"""Trains one network: a teacher, a plain student, or (with terms in its config) a distilled one.

python -m kdjax train --config configs/shapes_pspnet_r18.py --workdir runs/first --config.steps=500

The workdir then holds the student, its scores, its log, and report.html. The same command continues
a stopped run.
"""

from absl import flags

from kdjax.cli.flags import ConfigFlag
from kdjax.experiment.train import train
from kdjax.training import profiling
from kdjax.utils import environment, processes
from kdjax.utils.log import RunLogger

_CONFIG = ConfigFlag()
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "The run's folder. It is created, or continued if it exists.", required=True
)
_PROFILE = flags.DEFINE_string(
    "profile", None, "Steps to trace into WORKDIR/profile, as 20:25, for ui.perfetto.dev."
)
_PROCESSES = processes.define_flags()


def main(argv: list[str]) -> None:
    """Trains or continues, and prints where the student and the report are."""
    del argv
    config = _CONFIG.read()
    profile = profiling.steps_of(_PROFILE.value) if _PROFILE.value else None
    processes.join(_PROCESSES)
    environment.set_up_jax()
    files = train(config, _WORKDIR.value, profile=profile).files
    RunLogger("train").info(f"the student is in {files.student}, the report is {files.report}")
