"""Scores as the functions return them: by class name, and as a table in a notebook."""

import dataclasses
import html
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class SplitScores:
    """What a network scored on a split: shares of one, 0 to 1, NaN where nothing is to be scored.

    Attributes:
      miou: mean of the IoU over the classes that occur.
      pixel_accuracy: share of the labelled pixels that are right.
      iou: intersection over union by class name.
      agreement: share of the pixels on which student and teacher agree; None without a teacher.
    """

    miou: float
    pixel_accuracy: float
    iou: Mapping[str, float]
    agreement: float | None = None

    @classmethod
    def of(cls, values: Mapping[str, Any], class_names: Sequence[str]) -> "SplitScores":
        """From what `kdjax.evaluation.metrics.Scores.as_dict` returns, as a workdir holds it."""
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
        """The scores by name, as JSON holds them: None stands for NaN."""
        return {
            "miou": _known(self.miou),
            "pixel_accuracy": _known(self.pixel_accuracy),
            "agreement": self.agreement,
            "iou": {name: _known(iou) for name, iou in self.iou.items()},
        }


def _known(share: float) -> float | None:
    return None if math.isnan(share) else share


def percent(share: float | None) -> str:
    """A share of one in percent; a dash where it is not known."""
    return "–" if share is None or math.isnan(share) else f"{100 * share:.2f}"


def html_table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A table as notebooks show it, the first cell of each row as its name."""
    head = "".join(f"<th>{html.escape(cell)}</th>" for cell in header)
    lines = []
    for first, *others in rows:
        cells = "".join(f"<td>{html.escape(cell)}</td>" for cell in others)
        lines.append(f"<tr><th>{html.escape(first)}</th>{cells}</tr>")
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table>"
