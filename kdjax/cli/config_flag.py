"""The flag `--config`, with `--config.key=value` for every leaf of the config that it names."""

from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from kdjax import config_file
from kdjax.config import Config, validate
from kdjax.errors import UserError
from kdjax.ranges import WrongValue


class Parser(flags.ArgumentParser[ConfigDict]):
    """What the flag `--config` makes of `path.py`, or of `path.py:argument`."""

    def parse(self, argument: str) -> ConfigDict:
        """Returns the config of a file, locked.

        Raises:
          UserError: as `kdjax.config_file.read`.
        """
        return config_file.read(argument).lock()

    def flag_type(self) -> str:
        """What `--help` calls it."""
        return "config file"


def define() -> flags.FlagHolder[Any]:
    """Defines the flag."""
    holder = config_flags.DEFINE_config_file(
        "config",
        None,
        "A config file, or one of kdjax's own, as quickstart.py or published.py:SET,PAIR,METHOD.",
        lock_config=True,
    )
    flags.FLAGS["config"].parser = Parser()
    return holder


def read(flag: flags.FlagHolder[Any]) -> Config:
    """Returns the config that the flags ask for.

    Raises:
      UserError: when the flag is missing, or a value makes no sense; then naming the line of the
        file that sets it, if no flag does.
    """
    if flag.value is None:
        raise UserError("--config is missing, as in --config configs/quickstart.py")
    parsed: Any = flags.FLAGS["config"]
    named = parsed.config_filename.partition(":")[0]
    if (found := config_file.find(named)) != named:
        # Who meant a file of their own is not to learn it from the results.
        print(f"config: there is no {named} here, so {found}", flush=True)
    try:
        validate(flag.value)
    except WrongValue as error:
        raise config_file.located(error) from None
    return flag.value
