"""kdjax: knowledge distillation for semantic segmentation in JAX."""

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kdjax.comparison.compare import ComparisonResult, compare
    from kdjax.config import Config, network
    from kdjax.config import default as default_config
    from kdjax.data import Dataset
    from kdjax.deployment.exporting import export
    from kdjax.distillation import Distiller, Loss, term
    from kdjax.errors import Preempted, Transient, UserError
    from kdjax.evaluation.evaluator import TrainedNetwork
    from kdjax.reporting.writers import Writer
    from kdjax.runs.evaluate import Evaluation, evaluate, predict
    from kdjax.runs.train import RunResult, train
    from kdjax.training.loop import Diverged

    load = TrainedNetwork.load

__version__ = "0.2.0"

__all__ = [
    "ComparisonResult",
    "Config",
    "Dataset",
    "Distiller",
    "Diverged",
    "Evaluation",
    "Loss",
    "Preempted",
    "RunResult",
    "TrainedNetwork",
    "Transient",
    "UserError",
    "Writer",
    "compare",
    "default_config",
    "evaluate",
    "export",
    "load",
    "network",
    "predict",
    "term",
    "train",
]

# Where each is, imported when it is asked for: importing kdjax itself takes no time.
_PLACES = {
    "ComparisonResult": "kdjax.comparison.compare",
    "Config": "kdjax.config",
    "Dataset": "kdjax.data",
    "Distiller": "kdjax.distillation",
    "Diverged": "kdjax.training.loop",
    "Evaluation": "kdjax.runs.evaluate",
    "Loss": "kdjax.distillation",
    "Preempted": "kdjax.errors",
    "RunResult": "kdjax.runs.train",
    "Transient": "kdjax.errors",
    "TrainedNetwork": "kdjax.evaluation.evaluator",
    "UserError": "kdjax.errors",
    "Writer": "kdjax.reporting.writers",
    "compare": "kdjax.comparison.compare",
    "default_config": "kdjax.config:default",
    "evaluate": "kdjax.runs.evaluate",
    "export": "kdjax.deployment.exporting",
    "load": "kdjax.evaluation.evaluator:TrainedNetwork.load",
    "network": "kdjax.config",
    "predict": "kdjax.runs.evaluate",
    "term": "kdjax.distillation",
    "train": "kdjax.runs.train",
}


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, _, attribute = _PLACES[name].partition(":")
    found: Any = importlib.import_module(module)
    for part in (attribute or name).split("."):
        found = getattr(found, part)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _Package(ModuleType):
    """This package, in which `train` is the function and not the command of the same name.

    Whoever imports the command's module, as `import kdjax.train`, would otherwise put it in the
    function's place; it is still in `sys.modules`, where `python -m` and `importlib` find it.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _PLACES and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def _end_on_ctrl_c() -> None:
    """Ends `python -m kdjax.COMMAND` on Ctrl-C; in other processes, the library does nothing."""
    words = sys.orig_argv
    # Python sets the first word to "-m" while it looks for the module.
    if sys.argv[:1] != ["-m"] or "-m" not in words:
        return
    if words[words.index("-m") + 1].partition(".")[0] == __name__:
        from kdjax import interrupt

        interrupt.end_at_once()


# This file runs before the command imports anything.
_end_on_ctrl_c()
