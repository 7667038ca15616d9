"""The report of one or several finished runs."""

import functools
import sys
from collections.abc import Mapping, Sequence

import numpy as np

from kdjax.config import RunOptions
from kdjax.data.run_data import RunData
from kdjax.evaluation.evaluator import TrainedNetwork, predict_examples
from kdjax.experiment.scoring import with_predictions
from kdjax.experiment.workdir import Workdir
from kdjax.reporting.results import Example, Inspected, InspectedImage, Report
from kdjax.teachers.loading import ordered_teacher, reading_bands
from kdjax.utils import environment


def make_report(
    options: RunOptions,
    images: RunData,
    runs: Sequence[Workdir],
    examples: Sequence[Example],
    *,
    title: str,
    subtitle: str,
    call: str = "",
    remarks: Sequence[str] = (),
) -> Report:
    """Returns the report of finished runs.

    Args:
      options: the config.
      images: the data set of the runs.
      runs: the directories of the runs.
      examples: the examples to show, with their predictions.
      title: the heading of the report.
      subtitle: one sentence on data, networks, and budget.
      call: the Python call that repeats the runs, if no command runs.
      remarks: lines on how settings were chosen, and on runs that diverged.
    """
    split = options.data.test_split or options.data.val_split
    summaries = [run.summary(split) for run in runs]
    scored = any(len(summary.class_iou) for summary in summaries)
    against = "" if images.labeled_split(split) or not scored else ", against the teacher's labels"
    return Report(
        title=title,
        subtitle=subtitle,
        split=f"{split}{against}",
        runs=summaries,
        class_names=images.class_names if scored else (),
        palette=images.palette if scored else np.zeros((0, 3), np.uint8),
        examples=examples,
        config=options.stored,
        versions=environment.describe(),
        remarks=remarks,
        builds_on=dict(options.compare.builds_on),
        command=_command() or call,
    )


def predict_panels(
    options: RunOptions, images: RunData, panels: Mapping[str, str], inspected: Workdir | None
) -> tuple[list[Example], Inspected]:
    """Returns a few labeled examples, and the images to look at, with the predictions of networks.

    Args:
      options: the config.
      images: the data set.
      panels: the network checkpoint of each column. Networks of other classes are left out.
      inspected: the run whose images to look at are shown; None for none.

    Returns:
      The examples and the images; none if no network predicts the classes.
    """
    split = options.data.test_split or options.data.val_split
    # Results of older versions do not name images.
    result = inspected.read_result() if inspected else {}
    stored = result.get("inspected", {}).get(split, {})
    chosen = [entry for kind in Inspected._fields for entry in stored.get(kind, ())]
    panel = images.panel_examples()
    examples = [*panel, *images.examples(split, [entry["index"] for entry in chosen])]
    predictions: dict[str, Sequence[np.ndarray]] = {}
    for name, path in panels.items():
        network = TrainedNetwork.load(path, options=options.teacher.options)
        if path == options.teacher.checkpoint:
            network = reading_bands(network, options.teacher, images.bands, path)
        network = ordered_teacher(network, options.teacher, images.class_names)
        if network.info.num_classes == images.num_classes:
            predictions[name] = predict_examples(
                functools.partial(network.predictor, network.variables),
                examples,
                options.data.eval_batch_size,
            )
    if not predictions:
        return [], Inspected()
    predicted = with_predictions(images.bands, examples, predictions)
    found = iter(predicted[len(panel) :])
    kinds = (
        [
            InspectedImage(
                name=entry["name"],
                miou=entry["miou"],
                disputed=entry["disputed"],
                example=next(found),
            )
            for entry in stored.get(kind, ())
        ]
        for kind in Inspected._fields
    )
    return predicted[: len(panel)], Inspected(*kinds)


def _command() -> str | None:
    """Returns the command that runs, with its flags, or None outside of kdjax's commands."""
    if not sys.argv[0].startswith("kdjax "):
        return None
    return f"python -m {' '.join(sys.argv)}"
