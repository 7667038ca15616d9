"""Flags that several commands share: the config, and how images are seen."""

from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from kdjax.config import RunOptions, read
from kdjax.evaluation.inference import MODES, SLIDE_PAD_TO
from kdjax.utils import config_file
from kdjax.utils.errors import UserError


class _ConfigParser(flags.ArgumentParser[ConfigDict]):
    """What the flag `--config` makes of `path.py`, or of `path.py:argument`."""

    def parse(self, argument: str) -> ConfigDict:
        """Returns the config of a file, locked.

        Raises:
          UserError: as `kdjax.utils.config_file.read`.
        """
        return config_file.read(argument)

    def flag_type(self) -> str:
        """What `--help` calls it."""
        return "config file"


class ConfigFlag:
    """The flag `--config`, with `--config.key=value` for every leaf of the config that it names."""

    def __init__(self) -> None:
        self._flag = config_flags.DEFINE_config_file(
            "config",
            None,
            "A config file, as kdjax's own quickstart.py; --config.KEY=VALUE alters it.",
            lock_config=True,
        )
        flags.FLAGS["config"].parser = _ConfigParser()

    def read(self) -> RunOptions:
        """Returns the checked config that the flags ask for.

        Raises:
          UserError: if the flag is missing or a value is wrong.
        """
        if self._flag.value is None:
            raise UserError("--config is missing, as in --config configs/quickstart.py")
        parsed: Any = flags.FLAGS["config"]
        named = parsed.config_filename.partition(":")[0]
        if (found := config_file.find(named)) != named:
            # Users who meant a file of their own must not learn it from the results.
            print(f"config: there is no {named} here; using {found}", flush=True)
        return read(self._flag.value)


class InferenceFlags:
    """`--mode`, `--window`, `--stride`, `--scales`, `--flip` and `--pad_to`."""

    def __init__(self) -> None:
        self._mode = flags.DEFINE_enum(
            "mode", "whole", MODES, "whole images, or windows that overlap."
        )
        self._window = flags.DEFINE_string(
            "window",
            None,
            "slide: height and width of a window, as 512,1024; by default the run's crop.",
        )
        self._stride = flags.DEFINE_string(
            "stride",
            None,
            "slide: from one window to the next, as 341,683; by default two thirds of one.",
        )
        self._scales = flags.DEFINE_list(
            "scales",
            ["1.0"],
            "Sizes at which an image is seen, as 0.5,1.0,1.5; their mean decides.",
        )
        self._flip = flags.DEFINE_bool("flip", False, "See the mirror image at each scale, too.")
        self._pad_to = flags.DEFINE_integer(
            "pad_to",
            None,
            f"Pad images to multiples of this: fewer sizes to compile (slide: {SLIDE_PAD_TO}).",
            lower_bound=1,
            upper_bound=8192,
        )

    def options(self) -> dict[str, Any]:
        """The flags as arguments of `kdjax.evaluate` and `kdjax.predict`.

        Raises:
          UserError: for what is no number.
        """
        try:
            scales = tuple(float(scale) for scale in self._scales.value or ())
        except ValueError:
            given = ",".join(self._scales.value or ())
            raise UserError(f"--scales is {given!r}; give numbers, as 0.5,1.0") from None
        return {
            "mode": self._mode.value,
            "window": _pair(self._window),
            "stride": _pair(self._stride),
            "scales": scales,
            "flip": self._flip.value,
            "pad_to": self._pad_to.value,
        }


def _pair(flag: flags.FlagHolder[str | None]) -> tuple[int, int] | None:
    if flag.value is None:
        return None
    try:
        height, width = map(int, flag.value.split(","))
    except ValueError:
        raise UserError(
            f"--{flag.name} is {flag.value!r}; give height and width, as 512,1024"
        ) from None
    return height, width
