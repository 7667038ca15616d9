"""Writes the table of docs/recipes.md from the recipes.

    python -m tools.published_recipes

The numbers come from the configs, except the number of classes.
"""

import pathlib
import re

from kdjax import recipes

PAGE = pathlib.Path(__file__).resolve().parent.parent / "docs" / "recipes.md"
COLUMNS = (
    "SET,PAIR",
    "classes",
    "steps x batch",
    "crop",
    "`teachers/`",
    "its mmsegmentation config",
)
HEAD = f"| {' | '.join(COLUMNS)} |\n| --- | ---: | ---: | --- | --- | --- |\n"
TABLE = re.compile(rf"^{re.escape(HEAD)}(?:\|.*\n)*", re.MULTILINE)

CLASSES = {"cityscapes": 19, "voc2012": 21, "ade20k": 150, "pascal_context": 59, "coco_stuff": 171}

# The mmsegmentation configs whose checkpoints are the teachers, as network and data set.
# SegFormer-B4 is published for two of the sets.
_R101 = {
    "cityscapes": "r101-d8_4xb2-80k_cityscapes-512x1024",
    "voc2012": "r101-d8_4xb4-40k_voc12aug-512x512",
    "ade20k": "r101-d8_4xb4-160k_ade20k-512x512",
    "pascal_context": "r101-d8_4xb4-80k_pascal-context-59-480x480",
    "coco_stuff": "r101-d8_4xb4-320k_coco-stuff164k-512x512",
}
TEACHERS = {
    f"{data}_{head}_r101": f"{head}_{rest}"
    for data, rest in _R101.items()
    for head in ("pspnet", "deeplabv3")
} | {
    "cityscapes_segformer_b4": "segformer_mit-b4_8xb1-160k_cityscapes-1024x1024",
    "ade20k_segformer_b4": "segformer_mit-b4_8xb2-160k_ade20k-512x512",
}


def row(data: str, pair: str) -> str:
    """Returns the line of the table for a pair of networks on a data set."""
    config = recipes.published(data, pair)
    teacher = config.teacher.checkpoint.removeprefix("teachers/")
    height, width = config.data.crop_size
    found = TEACHERS.get(teacher)
    cells = (
        f"`{data},{pair}`",
        f"{CLASSES[data]}",
        f"{config.steps // 1000}k x {config.data.batch_size}",
        f"{height} x {width}",
        f"`{teacher}`",
        f"`{found}`" if found else f"none: `{data},{pair},{recipes.TEACHER}` trains it",
    )
    return f"| {' | '.join(cells)} |\n"


def table() -> str:
    """Returns the table as Markdown."""
    return HEAD + "".join(row(data, pair) for data in recipes.TRAININGS for pair in recipes.PAIRS)


def main() -> None:
    """Replaces the table in the page."""
    text, found = TABLE.subn(lambda _: table(), PAGE.read_text())
    assert found == 1, f"{PAGE} has {found} tables with this header"
    PAGE.write_text(text)


if __name__ == "__main__":
    main()
