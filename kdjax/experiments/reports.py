"""The report of one run or of several, from what their workdirs hold."""

import functools
import sys
from collections.abc import Mapping, Sequence

from kdjax import config as configuration
from kdjax.config import Config
from kdjax.experiments import environment
from kdjax.experiments.images import Images
from kdjax.experiments.networks import TrainedNetwork, predict_examples
from kdjax.experiments.workdir import Workdir
from kdjax.reporting.results import Example, Report


def make_report(
    config: Config,
    images: Images,
    runs: Sequence[Workdir],
    panels: Mapping[str, str],
    *,
    title: str,
    subtitle: str,
    call: str = "",
    remarks: Sequence[str] = (),
) -> Report:
    """Gathers the report of finished runs.

    Args:
      config: what was asked for.
      images: the data set of the runs.
      runs: their workdirs.
      panels: column title -> network checkpoint, of the networks whose predictions are shown.
      title: heading of the report.
      subtitle: one sentence on data, networks and budget.
      call: what has this again, where Python called it and no command runs.
      remarks: lines on how settings were chosen, and on runs that diverged.
    """
    split = config.data.test_split or config.data.val_split
    return Report(
        title=title,
        subtitle=subtitle,
        split=split,
        runs=[run.summary(split) for run in runs],
        class_names=images.class_names,
        palette=images.palette,
        examples=predict_panels(config, images, panels),
        config=configuration.to_json(config),
        versions=environment.describe(),
        remarks=remarks,
        builds_on=dict(config.compare.builds_on),
        command=_command() or call,
    )


def predict_panels(config: Config, images: Images, panels: Mapping[str, str]) -> list[Example]:
    """A few labelled examples with the predictions of networks, as `make_report` takes `panels`.

    Networks that score other classes are left out.
    """
    examples = images.panel_examples()
    predictions = {}
    for name, path in panels.items():
        network = TrainedNetwork.load(path)
        if network.info.num_classes == images.num_classes:
            predictions[name] = predict_examples(
                functools.partial(network.predictor, network.variables),
                examples,
                config.data.eval_batch_size,
            )
    return [
        Example(
            image=example["image"],
            label=example["label"],
            predictions={name: found[index] for name, found in predictions.items()},
        )
        for index, example in enumerate(examples)
    ]


def _command() -> str | None:
    """The command that runs, with its flags; None where none does."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    if spec is None or not spec.name.startswith("kdjax."):
        return None
    return f"python -m {spec.name} {' '.join(sys.argv[1:])}"
