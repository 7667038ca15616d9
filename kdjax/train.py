"""Trains one network: a teacher, a plain student, or (with terms in its config) a distilled one.

python -m kdjax.train --config configs/X.py --workdir DIR [--config.key=value ...]

`--profile 20:25` traces these steps into DIR/profile, for TensorBoard and https://ui.perfetto.dev.
"""

from absl import flags

from kdjax import environment, processes
from kdjax.cli import command
from kdjax.cli.flags import ConfigFlag
from kdjax.log import RunLogger
from kdjax.runs.train import train
from kdjax.training import profiling

_CONFIG = ConfigFlag()
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Where the run is written; one that is there is continued.", required=True
)
_PROFILE = flags.DEFINE_string("profile", None, "Steps to trace, as 20:25.")
_PROCESSES = processes.define_flags()


def main(argv: list[str]) -> None:
    """Trains, or continues, and says where the student and the report are."""
    del argv
    config = _CONFIG.read()
    profile = profiling.steps_of(_PROFILE.value) if _PROFILE.value else None
    processes.join(_PROCESSES)
    environment.enable_compilation_cache()
    files = train(config, _WORKDIR.value, profile=profile).files
    log = RunLogger("train")
    log.info(f"student {files.student}")
    log.info(f"report {files.report}")


if __name__ == "__main__":
    command.run(main, resumes=True)
