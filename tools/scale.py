"""Prints the table of docs/scale.md.

python -m tools.scale plans/*.json

Each file is the output of `python -m kdjax plan --json`.
"""

import json
import pathlib
import sys
from typing import Any

HEADER = (
    *("Terms", "Type", "Slice", "Images a chip", "Memory of a chip", "Compute", "Collectives"),
    *("Sent by a chip", "Images/s, at most"),
)


def row(plan: dict[str, Any]) -> list[str]:
    """Returns the cells of one plan."""
    terms = " + ".join(term["loss"] for term in plan["config"]["terms"].values())
    a_chip = plan["batch_size"] // plan["devices"]
    start = [terms, plan["config"]["student"]["dtype"], plan["topology"], f"{a_chip}"]
    if plan["bound"] is None:
        return [*start, "does not fit", *["–"] * (len(HEADER) - 4)]
    sent = sum(found["sent_bytes"] for found in plan["collectives"])
    return [
        *start,
        f"{plan['needed'] / 2**30:.2f} of {plan['chip']['memory'] / 2**30:.0f} GiB",
        *(
            f"{1000 * plan['seconds'].get(kind, 0.0):.2f} ms"
            for kind in ("compute", "interconnect")
        ),
        f"{sent / 1e6:.1f} MB",
        f"{plan['batch_size'] / plan['bound']:,.0f}",
    ]


def main(paths: list[str]) -> None:
    """Prints the header and a row for each file."""
    plans = [json.loads(pathlib.Path(path).read_text()) for path in paths]
    rows = [list(HEADER), [*["---"] * 3, *["---:"] * (len(HEADER) - 3)], *map(row, plans)]
    for cells in rows:
        print("| " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main(sys.argv[1:])
