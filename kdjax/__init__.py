"""kdjax: knowledge distillation for semantic segmentation in JAX."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kdjax.comparison.compare import ComparisonResult, compare
    from kdjax.config import Config, extra_set, network
    from kdjax.config import default as default_config
    from kdjax.data import Dataset
    from kdjax.deployment.exporting import export
    from kdjax.distillation import Distiller, Loss, term
    from kdjax.evaluation.evaluator import TrainedNetwork
    from kdjax.experiment.evaluate import evaluate
    from kdjax.experiment.label import label
    from kdjax.experiment.predict import predict
    from kdjax.experiment.result import RunResult
    from kdjax.experiment.scores import Evaluation
    from kdjax.experiment.train import train
    from kdjax.reporting.writers import Writer
    from kdjax.training.loop import Diverged
    from kdjax.utils.errors import Preempted, Transient, UserError

    load = TrainedNetwork.load

__version__ = "0.4.0"

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
    "extra_set",
    "label",
    "load",
    "network",
    "predict",
    "term",
    "train",
]

# The module of each name, imported on first use, so that importing kdjax takes no time.
_PLACES = {
    "ComparisonResult": "kdjax.comparison.compare",
    "Config": "kdjax.config",
    "Dataset": "kdjax.data",
    "Distiller": "kdjax.distillation",
    "Diverged": "kdjax.training.loop",
    "Evaluation": "kdjax.experiment.scores",
    "Loss": "kdjax.distillation",
    "Preempted": "kdjax.utils.errors",
    "RunResult": "kdjax.experiment.result",
    "Transient": "kdjax.utils.errors",
    "TrainedNetwork": "kdjax.evaluation.evaluator",
    "UserError": "kdjax.utils.errors",
    "Writer": "kdjax.reporting.writers",
    "compare": "kdjax.comparison.compare",
    "default_config": "kdjax.config:default",
    "evaluate": "kdjax.experiment.evaluate",
    "export": "kdjax.deployment.exporting",
    "extra_set": "kdjax.config",
    "label": "kdjax.experiment.label",
    "load": "kdjax.evaluation.evaluator:TrainedNetwork.load",
    "network": "kdjax.config",
    "predict": "kdjax.experiment.predict",
    "term": "kdjax.distillation",
    "train": "kdjax.experiment.train",
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
