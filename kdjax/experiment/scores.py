"""Scores of a network on a split, as `kdjax.train` and `kdjax.evaluate` return them."""

import dataclasses
import html
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from kdjax.reporting.results import OPTIONAL_SCORES
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
      precision: the share of the pixels predicted as a class that have its label, by class name.
        Empty unless there are two classes, a background and an object.
      recall: the share of the pixels labeled as a class that are predicted as it, likewise.
      boundary_iou: Boundary IoU by class name; empty if it was not measured.
      boundary_f1: boundary F1 by class name; empty if it was not measured.
    """

    miou: float
    pixel_accuracy: float
    iou: Mapping[str, float]
    agreement: float | None = None
    precision: Mapping[str, float] = dataclasses.field(default_factory=dict)
    recall: Mapping[str, float] = dataclasses.field(default_factory=dict)
    boundary_iou: Mapping[str, float] = dataclasses.field(default_factory=dict)
    boundary_f1: Mapping[str, float] = dataclasses.field(default_factory=dict)

    @classmethod
    def of(cls, values: Mapping[str, Any], class_names: Sequence[str]) -> "SplitScores":
        """Makes the scores from `kdjax.evaluation.evaluator.Scores.as_dict`, which a run stores."""

        def by_name(key: str) -> dict[str, float]:
            # Results of older versions lack some scores.
            if key not in values:
                return {}
            known = [math.nan if share is None else share for share in values[key]]
            return dict(zip(class_names, known, strict=True))

        miou, accuracy = (
            math.nan if values[key] is None else values[key] for key in ("miou", "pixel_accuracy")
        )
        return cls(
            miou=miou,
            pixel_accuracy=accuracy,
            iou=by_name("iou"),
            agreement=values["agreement"],
            **{key: by_name(key) for key in OPTIONAL_SCORES},
        )

    def to_dict(self) -> dict[str, Any]:
        """Returns the scores by name for JSON. None stands for NaN."""
        return {
            "miou": _known(self.miou),
            "pixel_accuracy": _known(self.pixel_accuracy),
            "agreement": self.agreement,
            "iou": {name: _known(iou) for name, iou in self.iou.items()},
            **{
                key: {name: _known(share) for name, share in shares.items()}
                for key in OPTIONAL_SCORES
                if (shares := getattr(self, key))
            },
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
      worst: a line for each of the images with the lowest mIoU. Empty unless pictures are written.
      disputed: a line for each image whose label may be wrong. Empty unless pictures are written.
    """

    split: str
    shapes: int
    worst: Sequence[str] = ()
    disputed: Sequence[str] = ()

    def to_dict(self) -> dict[str, Any]:
        """Returns the split and the scores by name for JSON. None stands for NaN."""
        return {"split": self.split, **super().to_dict()}

    def _further(self) -> list[tuple[str, float]]:
        """Returns the scores besides mIoU and pixel accuracy that are known, with their names."""
        found = []
        if self.precision:
            name = [*self.precision][1]
            of_object = {"precision": self.precision, "recall": self.recall, "IoU": self.iou}
            found = [(f"{kind} of {name}", shares[name]) for kind, shares in of_object.items()]
        for kind, shares in (
            ("Boundary IoU", self.boundary_iou),
            ("boundary F1", self.boundary_f1),
        ):
            known = [share for share in shares.values() if not math.isnan(share)]
            if known:
                found.append((f"mean {kind}", statistics.fmean(known)))
        return found

    def __str__(self) -> str:
        width = max(map(len, self.iou))
        columns = [self.iou, *filter(None, (self.boundary_iou, self.boundary_f1))]
        lines = [
            "  ".join([f"{name:{width}}", *(f"{100 * shares[name]:6.2f} %" for shares in columns)])
            for name in self.iou
        ]
        if len(columns) > 1:
            lines.insert(0, f"{'':{width}}       IoU  boundary        F1")
        total = f"mIoU {100 * self.miou:.2f} %{of_one_class([*self.iou.values()])}"
        accuracy = f"pixel accuracy {100 * self.pixel_accuracy:.2f} %"
        further = [f"{name} {100 * share:.2f} %" for name, share in self._further()]
        lines.append(f"{self.split}: {', '.join([total, accuracy, *further])}")
        for title, images in (("lowest IoU", self.worst), ("labels to check", self.disputed)):
            if images:
                lines += [f"{title}:", *(f"  {image}" for image in images)]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        remark = of_one_class([*self.iou.values()])
        rows = [
            (f"mIoU{remark}", self.miou),
            ("pixel accuracy", self.pixel_accuracy),
            *self._further(),
            *self.iou.items(),
        ]
        cells = [(name, percent(share)) for name, share in rows]
        return html_table((self.split, "%"), cells)
