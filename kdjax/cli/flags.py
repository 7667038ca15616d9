"""The flags that several commands share: the config, and how a network looks at images."""

import ast
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from kdjax.config import RunOptions, read
from kdjax.evaluation.inference import MODES, SLIDE_PAD_TO
from kdjax.utils import config_file
from kdjax.utils.errors import UserError


class _ConfigParser(flags.ArgumentParser[ConfigDict]):
    """The parser of the flag `--config`, for `path.py` or `path.py:argument`."""

    def parse(self, argument: str) -> ConfigDict:
        """Returns the config of a file, locked.

        Raises:
          UserError: as in `kdjax.utils.config_file.read`.
        """
        return config_file.read(argument)

    def flag_type(self) -> str:
        """Returns the type of the flag, for `--help`."""
        return "config file"


class ConfigFlag:
    """The flag `--config`, with `--config.key=value` for every leaf of the config that it names."""

    def __init__(self) -> None:
        self._flag = config_flags.DEFINE_config_file(
            "config",
            None,
            "A config file, as kdjax's own quickstart.py; --config.KEY=VALUE changes a value.",
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
    """The flags `--mode`, `--window`, `--stride`, `--scales`, `--flip`, and `--pad_to`."""

    def __init__(self) -> None:
        self._mode = flags.DEFINE_enum(
            "mode", "whole", MODES, "Whole images, or windows that overlap."
        )
        self._window = flags.DEFINE_list(
            "window", None, "slide: height and width of a window, as 512,1024 [the run's crop]."
        )
        self._stride = flags.DEFINE_list(
            "stride", None, "slide: rows and columns between windows, as 341,683 [2/3 of a window]."
        )
        self._scales = flags.DEFINE_list(
            "scales", ["1.0"], "Image sizes whose mean decides, as 0.5,1.0,1.5."
        )
        self._flip = flags.DEFINE_bool("flip", False, "Use the mirror image at each scale, too.")
        self._pad_to = flags.DEFINE_integer(
            "pad_to",
            None,
            f"Pad images to multiples of this: fewer sizes to compile (slide: {SLIDE_PAD_TO}).",
            lower_bound=1,
            upper_bound=8192,
        )

    def options(self) -> dict[str, Any]:
        """Returns the flags as arguments of `kdjax.evaluate` and `kdjax.predict`.

        Raises:
          UserError: if a value is not a number.
        """
        return {
            "mode": self._mode.value,
            "window": _numbers(self._window, int, "512,1024"),
            "stride": _numbers(self._stride, int, "341,683"),
            "scales": _numbers(self._scales, float, "0.5,1.0") or (),
            "flip": self._flip.value,
            "pad_to": self._pad_to.value,
        }


class ModelFileFlags:
    """The flags `--classes` and `--option`, which say how to read an ONNX or TensorFlow Lite file.

    `--option` may be repeated, as in `--option kind=logits --option mean=127.5`.
    """

    def __init__(self) -> None:
        self._classes = flags.DEFINE_string(
            "classes", None, "Model file: class names (road,sky), or a file with one on each line."
        )
        self._options = flags.DEFINE_multi_string(
            "option", [], "Model file: an entry of config.teacher.options, as kind=logits."
        )

    def options(self) -> dict[str, Any]:
        """Returns the flags as `TrainedNetwork.load` takes them.

        Raises:
          UserError: if an option has no value.
        """
        given = {} if self._classes.value is None else {"classes": self._classes.value}
        for text in self._options.value:
            name, separator, value = text.partition("=")
            if not (name and separator and value):
                raise UserError(f"--option is {text!r}; give a name and a value, as kind=logits")
            given[name] = _python_value(value)
        return given


def _python_value(text: str) -> Any:
    """Returns the number or numbers that a text holds, or the text."""
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
    return value if isinstance(value, int | float | tuple) else text


def _numbers(flag: flags.FlagHolder[Any], kind: type, example: str) -> tuple[Any, ...] | None:
    if flag.value is None:
        return None
    try:
        return tuple(map(kind, flag.value))
    except ValueError:
        given = ",".join(flag.value)
        raise UserError(f"--{flag.name} is {given!r}; give numbers, as {example}") from None
