"""Labels of users: class tables, color tables, and the files of common tools."""

import json

import numpy as np
import pytest
from original_trees import labels, prepare, refuses
from PIL import Image

from kdjax.data.preparing.class_tables import TableRow, read_class_table

ROAD, SKY, VOID = (128, 64, 128), (70, 130, 180), (0, 0, 0)
IDS = np.array([[0, 1, 1], [255, 0, 1]], np.uint8)  # of road and sky
COLORS = np.array([[ROAD, SKY, SKY], [VOID, ROAD, SKY]], np.uint8)
CSV = "name,r,g,b\nroad,128,64,128\nsky,70,130,180\nVoid,0,0,0\n"


def palette_image(order):
    """Returns the colors as a palette image with indices in `order`."""
    indices = [[order.index(tuple(color)) for color in row] for row in COLORS.tolist()]
    image = Image.fromarray(np.array(indices, np.uint8))
    image.putpalette([channel for color in order for channel in color])
    return image


def write(source, file, label):
    """Writes a label of this name, pixels or a PIL image, and an image."""
    label = Image.fromarray(label) if isinstance(label, np.ndarray) else label
    image = Image.new("RGB", label.size)
    for kind, picture, name in (("images", image, f"{file[0]}.png"), ("labels", label, file)):
        (source / kind / "train").mkdir(parents=True, exist_ok=True)
        picture.save(source / kind / "train" / name)


@pytest.fixture
def source(tmp_path):
    """One image whose label holds colors."""
    write(tmp_path / "source", "a.png", COLORS)
    return tmp_path / "source"


TABLES = {
    "classes.txt": "road\nsky\n",
    "colors.txt": "128 64 128\troad\n70 130 180\t\tsky\n0 0 0\tVoid\n",
    "labelmap.txt": "# label:color_rgb:parts:actions\nroad:128,64,128::\nsky:70,130,180::\n",
    "own.csv": "# ours\nlabel,name,red,green,blue\n7,road,128,64,128\n8,sky,70,130,180\n",
    "class_dict.csv": "name,r,g,b\nroad,128,64,128\nsky,70,130,180\n",
    "semicolons.csv": "Class;R;G;B\nroad;128;64;128\nsky;70;130;180\n",
    "_classes.csv": "Pixel Value, Class\n0, road\n1, sky\n",
    "labels.csv": "label,color\nroad,#804080\nsky,#4682B4\n",
    "names.json": ["road", "sky"],
    "id2label.json": {"7": "road", "8": "sky"},
    "label2id.json": {"road": 7, "sky": 8},
    "colors.json": {"road": [128, 64, 128], "sky": "#4682b4"},
    "cvat.json": [
        {"name": "road", "id": 7, "color": "#804080", "attributes": []},
        {"name": "sky", "id": 8, "color": "#4682b4", "attributes": []},
    ],
    "coco.json": {"categories": [{"id": 7, "name": "road"}, {"id": 8, "name": "sky"}]},
    "mmseg.json": {"classes": ["road", "sky"], "palette": [[128, 64, 128], [70, 130, 180]]},
    "by_id.json": {"7": {"name": "road", "color": "128, 64, 128"}, "8": {"name": "sky"}},
}


@pytest.mark.parametrize("name", TABLES)
def test_tables_as_people_have_them(name, tmp_path):
    text = TABLES[name] if isinstance(TABLES[name], str) else json.dumps(TABLES[name])
    (tmp_path / name).write_text(text)
    found = [row for row in read_class_table(tmp_path / name) if row.name != "Void"]
    assert [row.name for row in found] == ["road", "sky"]
    assert [row.label for row in found] == ([7, 8] if "7" in text.split("128")[0] else [0, 1])
    if "128" in text or "#" in text:
        assert found[0].color == ROAD
        assert found[1].color == (None if name == "by_id.json" else SKY)
    else:
        assert found == [
            TableRow("road", found[0].label, None),
            TableRow("sky", found[1].label, None),
        ]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (
            "classes.csv",
            "0, background\n1, leaf\n",
            r"classes\.csv .*: the first line must name the columns, as value,name or name,r,g,b; "
            "it is '0, background'",
        ),
        ("classes.csv", f"name\n{'x' * 140_000}\n", "classes.csv cannot be read as a table"),
        (
            "classes.json",
            "[" * 100_000,
            "classes.json cannot be read as a table of classes",
        ),
        ("classes.csv", "value,name\n1,road\n1,sky\n", "entry 2 of .* repeats the value 1"),
        (
            "classes.csv",
            "value,name\n1,road\n,sky\n",
            "entry 2 .*: either every row has a value",
        ),
        ("classes.csv", "value,name\none,road\n", "entry 1 of .*'one'"),
        ("classes.csv", "name,r,g,b\na,1,2,3\nb,1,2,3\n", "repeats the color"),
        ("classes.csv", "name,r,g,b\na,1,2,256\n", "entry 1 of .*is no color: give three"),
        ("classes.csv", "", "classes.csv names 0 classes"),
        ("classes.json", "[", "classes.json cannot be read as a table of classes"),
        ("classes.json", "3", "classes.json cannot be read as a table of classes"),
        ("classes.json", "[[1, 2]]", r"entry 1 of .*\[1, 2\] is no name"),
        ("classes.json", '["a", "a"]', "entry 2 of .* repeats the name a"),
        ("classes.json", '[{"name": "a", "color": "red"}]', "'red' is no color"),
        ("classes.json", '[{"name": "a", "color": 5}]', "entry 1 of .*5 is no color: give three"),
        *(
            ("classes.json", f'[{{"name": "a", "id": {value}}}]', f"entry 1 of .*value {shown} is")
            for value, shown in (("Infinity", "inf"), ("0.9", "0.9"), ("true", "True"))
        ),
        (
            "classes.json",
            '[{"name": "a", "color": [10.7, 0, 0]}]',
            "entry 1 of .*: the color channel 10.7 is not a whole number",
        ),
        ("classes.csv", "name,color\na,10.7 3 2\n", "the color channel '10.7' is not a whole"),
        *(
            (
                "classes.json",
                f'["road", "a{character}b"]',
                "the name 'a.*' holds a line break",
            )
            for character in (r"\n", r"\u001b[31m", r"\ud800", r"\u2028")
        ),
        ("classes.txt", "road\na\x1b[31mb\n", r"line 2 of .*: the name 'a\\x1b\[31mb' holds"),
    ],
)
def test_a_table_that_says_nothing_is_refused(source, tmp_path, name, text, message):
    (source / name).write_text(text)
    refuses("folder", source, tmp_path, message)


def test_two_tables_are_not_guessed_between(source, tmp_path):
    for name in ("classes.txt", "classes.json"):
        (source / name).write_text('["road"]')
    refuses("folder", source, tmp_path, r"has classes\.txt and classes\.json; keep one")


@pytest.mark.parametrize("place", ["option", "classes.csv"])
def test_colors_of_a_table_become_ids(source, tmp_path, place):
    write(source, "b.png", palette_image([SKY, VOID, ROAD]))
    write(source, "c.png", palette_image([VOID, (9, 9, 9), ROAD, SKY]))
    write(source, "d.png", Image.fromarray(COLORS).convert("RGBA"))
    write(source, "e.bmp", COLORS)
    table = source / ("classes.csv" if place == "classes.csv" else "colors.csv")
    table.write_text(CSV)
    options = {} if place == "classes.csv" else {"colors": str(table)}
    dataset = prepare("folder", source, tmp_path, ignore=["Void"], **options)
    assert dataset.class_names == ("road", "sky")
    assert dataset.palette.tolist() == [list(ROAD), list(SKY)]
    found = labels(dataset, "train")
    assert len(found) == 5
    for label in found.values():
        np.testing.assert_array_equal(label, IDS)


def test_gray_labels_hold_values_beside_a_table_with_colors(source, tmp_path):
    write(source, "b.png", np.array([[7, 8, 8], [255, 7, 8]], np.uint8))
    text = "value,name,r,g,b\n7,road,128,64,128\n8,sky,70,130,180\n0,Void,0,0,0\n"
    (source / "classes.csv").write_text(text)
    for label in labels(prepare("folder", source, tmp_path, ignore=[0]), "train").values():
        np.testing.assert_array_equal(label, IDS)


@pytest.mark.parametrize("mode", ["L", "1", "RGB"])
def test_black_and_white_masks(tmp_path, mode):
    mask = Image.fromarray(np.array([[0, 255, 255]], np.uint8)).convert(mode)
    write(tmp_path / "source", "a.png", mask)
    refuses("folder", tmp_path / "source", tmp_path, "no class but 0, .*classes.csv with columns")
    table = tmp_path / "source" / "classes.json"
    table.write_text('{"0": "background", "255": "leaf"}')
    dataset = prepare("folder", tmp_path / "source", tmp_path)
    assert dataset.class_names == ("background", "leaf")
    np.testing.assert_array_equal(labels(dataset, "train")["a"], [[0, 1, 1]])
    table.unlink()
    (tmp_path / "colors.csv").write_text("name,r,g,b\nbackground,0,0,0\nleaf,255,255,255\n")
    by_color = prepare(
        "folder", tmp_path / "source", tmp_path / "2", colors=str(tmp_path / "colors.csv")
    )
    assert by_color.fingerprint == dataset.fingerprint


def test_masks_whose_255_may_be_a_class_are_asked_about(tmp_path):
    write(tmp_path / "source", "a.png", np.array([[0, 255, 255]], np.uint8))
    (tmp_path / "source" / "classes.txt").write_text("background\nleaf\n")
    message = "value 255 and nothing of the class 'leaf': .*heading value,name; .* add --ignore 255"
    refuses("folder", tmp_path / "source", tmp_path, message)
    dataset = prepare("folder", tmp_path / "source", tmp_path, ignore=[255])
    np.testing.assert_array_equal(labels(dataset, "train")["a"], [[0, 255, 255]])
    # If all classes occur, 255 means ignored.
    write(tmp_path / "source", "b.png", np.array([[1, 0, 0]], np.uint8))
    assert prepare("folder", tmp_path / "source", tmp_path / "2").class_names[1] == "leaf"


def test_several_colors_and_values_may_be_one_class(source, tmp_path):
    (source / "classes.txt").write_text("ground\nsky\nnever seen\n")
    (tmp_path / "colors.csv").write_text(
        "original,class,r,g,b\nRoad,ground,128,64,128\nGrass,ground,0,128,0\n"
        "Sky,sky,70,130,180\nVoid,,0,0,0\n"
    )
    colors = str(tmp_path / "colors.csv")
    write(source, "b.png", np.where(COLORS == ROAD, (0, 128, 0), COLORS).astype(np.uint8))
    dataset = prepare("folder", source, tmp_path, colors=colors)
    assert dataset.class_names == ("ground", "sky", "never seen")
    for label in labels(dataset, "train").values():
        np.testing.assert_array_equal(label, IDS)
    (source / "classes.txt").write_text("sky\nnever seen\n")
    message = "names 'ground', which is no class of .*classes.txt; name it there, or .*--ignore 'g"
    refuses("folder", source, tmp_path / "2", message, colors=colors)


def test_colors_without_a_table_are_told_what_to_give(source, tmp_path):
    message = r"a\.png holds colors, as #804080, and no class ids; name .*--colors FILE"
    refuses("folder", source, tmp_path, message)


def test_an_unknown_color_is_named_with_its_nearest(source, tmp_path):
    strange = COLORS.copy()
    strange[0, 1:], strange[1, 2] = (72, 131, 180), (1, 1, 1)
    write(source, "b.png", strange)
    (source / "classes.csv").write_text(CSV)
    message = (
        r"b\.png holds the color #4883b4 \(2 pixels\) and 1 more unknown colors; the nearest "
        r"is #4682b4 \(sky\), allowed are those of classes\.csv; --ignore '#rrggbb' ignores"
    )
    refuses("folder", source, tmp_path, message)
    named = prepare("folder", source, tmp_path, ignore=["Void", "#4883B4", "#010101", "#000000"])
    all_unknown = prepare("folder", source, tmp_path / "2", ignore=["Void"], ignore_unknown=True)
    assert named.fingerprint == all_unknown.fingerprint
    np.testing.assert_array_equal(labels(named, "train")["b"], [[0, 255, 255], [255, 0, 255]])


def test_unknown_values_are_ignored_where_asked(tmp_path):
    write(tmp_path / "source", "a.png", np.array([[0, 1, 7, 255]], np.uint8))
    (tmp_path / "source" / "classes.txt").write_text("road\nsky\n")
    message = r"holds the value 7; allowed are 0\.\.1 \(classes\.txt names 2\), 255 and "
    refuses("folder", tmp_path / "source", tmp_path, message)
    dataset = prepare("folder", tmp_path / "source", tmp_path, ignore_unknown=True)
    np.testing.assert_array_equal(labels(dataset, "train")["a"], [[0, 1, 255, 255]])


def test_an_ignored_class_is_no_class(tmp_path):
    write(tmp_path / "source", "a.png", np.array([[0, 1, 2]], np.uint8))
    (tmp_path / "source" / "classes.txt").write_text("void\nroad\nsky\n")
    for place, ignore in enumerate([[0], ["void"]]):
        dataset = prepare("folder", tmp_path / "source", tmp_path / f"{place}", ignore=ignore)
        assert dataset.class_names == ("road", "sky")
        np.testing.assert_array_equal(labels(dataset, "train")["a"], [[255, 0, 1]])


@pytest.mark.parametrize(
    ("ignore", "message"),
    [
        (["Viod"], 'ignore Viod is no label value, no color and no class: did you mean "Void"'),
        (["#12"], "ignore #12: .*give three numbers"),
        ([3], "ignore 3: with --colors labels hold colors"),
        (["road", "sky", "Void"], r"colors\.csv names 0 classes"),
    ],
)
def test_what_cannot_be_ignored(source, tmp_path, ignore, message):
    (tmp_path / "colors.csv").write_text(CSV)
    colors = str(tmp_path / "colors.csv")
    refuses("folder", source, tmp_path, message, colors=colors, ignore=ignore)


@pytest.mark.parametrize(
    ("text", "message"),
    [(None, r"no file .*colors\.csv; --colors"), ("name\nroad\nsky\n", "no color for road")],
)
def test_a_file_without_colors_is_no_table_of_them(source, tmp_path, text, message):
    if text:
        (tmp_path / "colors.csv").write_text(text)
    refuses("folder", source, tmp_path, message, colors=str(tmp_path / "colors.csv"))


def test_smoothed_labels_are_seen_to_be_so(source, tmp_path):
    (source / "classes.csv").write_text(CSV)
    write(source, "b.png", Image.fromarray(COLORS).resize((24, 16), Image.Resampling.BILINEAR))
    message = r"b\.png holds the color .* more unknown colors, as smoothing or JPEG produces them;"
    refuses("folder", source, tmp_path, message)


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_labels_smeared_by_jpeg_are_refused(source, tmp_path, suffix):
    (source / "classes.csv").write_text(CSV)
    path = source / "labels" / "train" / f"a.{suffix}"
    (source / "labels" / "train" / "a.png").unlink()
    with path.open("wb") as file:
        Image.fromarray(COLORS).save(file, "jpeg")
    refuses("folder", source, tmp_path, rf"a\.{suffix} is a JPEG, whose compression changes")


@pytest.mark.parametrize(
    "name", ["a_mask.png", "a_L.PNG", "a_labelIds.png", "a.jpg.png", "a_seg.tif", "a.bmp"]
)
def test_names_of_labels_as_tools_write_them(tmp_path, name):
    write(tmp_path / "source", name, IDS)
    write(tmp_path / "source", "b.png", IDS)
    found = labels(prepare("folder", tmp_path / "source", tmp_path), "train")
    assert list(found) == ["a", "b"]
    np.testing.assert_array_equal(found["a"], IDS)


def test_two_labels_of_an_image_are_not_guessed_between(tmp_path):
    for name in ("a.png", "a_mask.png"):
        write(tmp_path / "source", name, IDS)
    message = r"a\.png and .*a_mask\.png are labels of one image; remove one"
    refuses("folder", tmp_path / "source", tmp_path, message)
