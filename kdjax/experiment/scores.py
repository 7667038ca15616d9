"""Scores of a network on a split, as `kdjax.train` and `kdjax.evaluate` return them."""

import dataclasses
import html
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from kdjax.utils.classes import of_one_class


@dataclasses.dataclass(frozen=True, kw_only=True)
class SplitScores:
    """The scores of a network on a split, 0 to 1. NaN if there is nothing to score.

    Attributes:
      miou: the mean of the IoU over the classes that occur.
      pixel_accuracy: the share of the labeled pixels that are right.
      iou: the intersection over union by class name.
      agreement: the share of the labeled pixels on which student and teacher agree. None without
        a teacher.
    """

    miou: float
    pixel_accuracy: float
    iou: Mapping[str, float]
    agreement: float | None = None

    @classmethod
    def of(cls, values: Mapping[str, Any], class_names: Sequence[str]) -> "SplitScores":
        """Makes the scores from `kdjax.evaluation.evaluator.Scores.as_dict`, which a run stores."""
        known = [math.nan if iou is None else iou for iou in values["iou"]]
        miou, accuracy = (
            math.nan if values[key] is None else values[key] for key in ("miou", "pixel_accuracy")
        )
        return cls(
            miou=miou,
            pixel_accuracy=accuracy,
            iou=dict(zip(class_names, known, strict=True)),
            agreement=values["agreement"],
        )

    def to_dict(self) -> dict[str, Any]:
        """Returns the scores by name for JSON. None stands for NaN."""
        return {
            "miou": _known(self.miou),
            "pixel_accuracy": _known(self.pixel_accuracy),
            "agreement": self.agreement,
            "iou": {name: _known(iou) for name, iou in self.iou.items()},
        }


def _known(share: float) -> float | None:
    return None if math.isnan(share) else share


def percent(share: float | None) -> str:
    """Returns a share in percent, or a dash if it is unknown."""
    return "–" if share is None or math.isnan(share) else f"{100 * share:.2f}"


def html_table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Returns an HTML table for notebooks. The first cell of each row is its heading."""
    head = "".join(f"<th>{html.escape(cell)}</th>" for cell in header)
    lines = []
    for first, *others in rows:
        cells = "".join(f"<td>{html.escape(cell)}</td>" for cell in others)
        lines.append(f"<tr><th>{html.escape(first)}</th>{cells}</tr>")
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table>"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluation(SplitScores):
    """The scores of a network on a split, with a table for print and notebooks.

    Attributes:
      split: the name of the split.
      shapes: the number of image shapes for which the network was compiled.
    """

    split: str
    shapes: int

    def to_dict(self) -> dict[str, Any]:
        """Returns the split and the scores by name for JSON. None stands for NaN."""
        return {"split": self.split, **super().to_dict()}

    def __str__(self) -> str:
        width = max(map(len, self.iou))
        lines = [f"{name:{width}}  {100 * iou:6.2f} %" for name, iou in self.iou.items()]
        total = f"mIoU {100 * self.miou:.2f} %{of_one_class([*self.iou.values()])}"
        accuracy = f"pixel accuracy {100 * self.pixel_accuracy:.2f} %"
        return "\n".join([*lines, f"{self.split}: {total}, {accuracy}"])

    def _repr_html_(self) -> str:
        remark = of_one_class([*self.iou.values()])
        rows = [
            (f"mIoU{remark}", self.miou),
            ("pixel accuracy", self.pixel_accuracy),
            *self.iou.items(),
        ]
        cells = [(name, percent(share)) for name, share in rows]
        return html_table((self.split, "%"), cells)
