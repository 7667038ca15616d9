"""Images of several bands: read, prepared, augmented, and refused."""

import functools
import re
import zlib

import jax
import numpy as np
import pytest
from PIL import Image

from kdjax.data import Dataset, measure_bands, sets
from kdjax.data._tensorflow import tf
from kdjax.data.loading import pipeline, records
from kdjax.data.loading.augment import augment
from kdjax.data.loading.device_augment import augment_batch
from kdjax.data.loading.sampling import AugmentOptions, draw
from kdjax.data.loading.sources import InMemoryExamples
from kdjax.data.preparing.band_files import PHOTO, Form, form_of, read_bands, size_of
from kdjax.data.preparing.prepare import verify
from kdjax.data.preparing.prepared import measure_split
from kdjax.utils.bands import RGB, Bands
from kdjax.utils.errors import UserError

tifffile = pytest.importorskip("tifffile", reason="pip install tifffile")
SIZES = [(20, 30), (41, 17), (33, 33)]
LIMITS = {"uint8": 256, "uint16": 65536, "float32": 1}


def noise(height, width, channels=5, dtype="uint16", seed=0):
    values = np.random.default_rng(seed).random((height, width, channels)) * LIMITS[dtype]
    return values.astype(dtype)


def write_png16(path, pixels):
    encoded = tf.io.encode_png(tf.constant(pixels))
    path.write_bytes(encoded.numpy())


def write_tiff(path, pixels, **options):
    tifffile.imwrite(path, pixels, photometric="minisblack", **options)


WRITERS = {
    "npy": lambda path, pixels: np.save(path.with_suffix(".npy"), pixels),
    "contiguous": lambda path, pixels: write_tiff(
        path.with_suffix(".tif"), pixels, planarconfig="contig"
    ),
    "planes": lambda path, pixels: write_tiff(
        path.with_suffix(".tif"), pixels.transpose(2, 0, 1), planarconfig="separate"
    ),
    "pages": lambda path, pixels: write_tiff(
        path.with_suffix(".tif"), pixels.transpose(2, 0, 1), metadata={"axes": "CYX"}
    ),
    "big_endian": lambda path, pixels: write_tiff(
        path.with_suffix(".tif"), pixels, planarconfig="contig", byteorder=">"
    ),
}


@pytest.mark.parametrize("dtype", LIMITS)
@pytest.mark.parametrize("kind", WRITERS)
def test_a_file_keeps_its_numbers(tmp_path, kind, dtype):
    pixels = noise(20, 30, dtype=dtype)
    WRITERS[kind](tmp_path / "image", pixels)
    (path,) = tmp_path.iterdir()
    assert form_of(path) == Form(dtype, 5)
    assert size_of(path) == (20, 30)
    found = read_bands(path, Form(dtype, 5)).pixels
    assert found.dtype == dtype
    np.testing.assert_array_equal(found, pixels)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_png_of_16_bits_keeps_them(tmp_path, channels):
    pixels = noise(20, 30, channels)
    write_png16(tmp_path / "image.png", pixels)
    assert form_of(tmp_path / "image.png") == Form("uint16", channels)
    found = read_bands(tmp_path / "image.png", Form("uint16", channels)).pixels
    np.testing.assert_array_equal(found, pixels)


def test_photos_stay_photos(tmp_path):
    pixels = noise(20, 30, 4, "uint8")
    for mode, name in (("RGB", "a.png"), ("RGBA", "b.png"), ("L", "c.tif"), ("RGB", "d.jpg")):
        image = Image.fromarray(pixels[..., : len(mode)] if mode != "L" else pixels[..., 0])
        image.save(tmp_path / name)
        assert form_of(tmp_path / name) == PHOTO, name


def write_set(source, dtype="uint16", channels=5, count=6):
    """Writes images of several sizes for `prepare folder`, and returns those of training."""
    train = []
    for split, offset in (("train", 0), ("val", 100)):
        for kind in ("images", "labels"):
            (source / kind / split).mkdir(parents=True)
        for index in range(count):
            height, width = SIZES[index % len(SIZES)]
            pixels = noise(height, width, channels, dtype, index + offset)
            pixels[..., 1] = pixels[..., 1] // 2 if dtype != "float32" else pixels[..., 1] / 2
            np.save(source / "images" / split / f"{index}.npy", pixels)
            label = (np.arange(width) >= width // 2).astype(np.uint8) * np.ones((height, 1), "u1")
            Image.fromarray(label.astype(np.uint8)).save(source / "labels" / split / f"{index}.png")
            train += [pixels] if split == "train" else []
    return train


@pytest.mark.parametrize("dtype", LIMITS)
@pytest.mark.parametrize("tiles", [False, True])
def test_prepare_keeps_the_numbers_and_measures_training_images(
    tmp_path, dtype, tiles, monkeypatch
):
    monkeypatch.setattr(records, "TILE", (8, 16))
    records._decoder.cache_clear()
    train, said = write_set(tmp_path / "in", dtype), []
    prepared = sets.prepare(
        "folder", tmp_path / "data", source=tmp_path / "in", tiles=tiles, report=said.append
    )
    assert f"has 5 bands of {dtype}" in said[0]
    values = np.concatenate([image.reshape(-1, 5).astype(float) for image in train])
    assert prepared.bands.dtype == dtype
    assert prepared.bands.rgb == (0, 1, 2)
    np.testing.assert_allclose(prepared.bands.mean, values.mean(0), rtol=1e-9)
    np.testing.assert_allclose(prepared.bands.std, values.std(0), rtol=1e-6)
    found = list(prepared.records("train").decoded(range(len(train))))
    for example, image in zip(found, train, strict=True):
        assert example["image"].dtype == dtype
        np.testing.assert_array_equal(example["image"], image)
    measured = measure_split(prepared, "train")
    np.testing.assert_allclose(measured.mean, prepared.bands.mean, rtol=1e-9)
    assert verify("folder", tmp_path / "data").bands == prepared.bands
    # The windows of crops are those of whole images.
    options = AugmentOptions((16, 16), scale_range=(1.0, 1.0), bands=prepared.bands)
    batches = [
        next(pipeline.train_batches(source, batch_size=6, seed=0, steps=range(1), options=options))
        for source in (
            prepared.records("train"),
            InMemoryExamples(found, bands=prepared.bands),
        )
    ]
    np.testing.assert_array_equal(batches[0]["image"], batches[1]["image"])
    assert batches[0]["image"].dtype == (np.uint8 if dtype == "uint8" else np.float32)
    records._decoder.cache_clear()


def test_the_bands_of_a_picture_are_chosen(tmp_path):
    write_set(tmp_path / "in")
    prepared = sets.prepare("folder", tmp_path / "data", source=tmp_path / "in", rgb=[4, 2, 0])
    assert prepared.bands.rgb == (4, 2, 0)
    image = next(prepared.records("val").decoded([0]))["image"]
    picture = prepared.bands.picture(image)
    assert (picture.dtype, picture.shape) == (np.uint8, (*image.shape[:2], 3))
    # Brighter in the picture where the band is brighter.
    assert np.corrcoef(picture[..., 0].ravel(), image[..., 4].ravel())[0, 1] > 0.98


def test_images_are_made_smaller_with_their_labels(tmp_path):
    write_set(tmp_path / "in")
    whole = sets.prepare("folder", tmp_path / "whole", source=tmp_path / "in")
    small = sets.prepare("folder", tmp_path / "small", source=tmp_path / "in", max_side=15)
    for large, little in zip(
        *(data.records("train").decoded(range(6)) for data in (whole, small)), strict=True
    ):
        assert max(little["label"].shape) == 15
        assert little["image"].shape[:2] == little["label"].shape
        np.testing.assert_allclose(
            little["image"].mean((0, 1)), large["image"].mean((0, 1)), rtol=0.12
        )
        assert set(np.unique(little["label"])) == {0, 1}
        # The border between the classes stays in the middle.
        assert abs((little["label"] == 1).mean() - 0.5) < 0.07


def _nan(source):
    pixels = noise(20, 30, dtype="float32")
    pixels[3, 4, 1] = np.nan
    np.save(source / "images" / "train" / "3.npy", pixels)
    return "3.npy holds NaN or infinity: give those pixels a number, and 255 in the label"


def _other_bands(source):
    np.save(source / "images" / "train" / "3.npy", noise(20, 30, 4, "float32"))
    return "3.npy is an image with 4 bands of float32; this data set or network takes 5 bands of"


def _a_photo(source):
    (source / "images" / "val" / "3.npy").unlink()
    Image.fromarray(noise(20, 30, 3, "uint8")).save(source / "images" / "val" / "3.png")
    return "3.png is an 8-bit photo; this data set or network takes 5 bands of float32"


def _whole_numbers(source):
    np.save(source / "images" / "train" / "0.npy", np.zeros((20, 30, 5), np.int32))
    return "0.npy holds int32; kdjax reads uint8, uint16, float32: save it as one of them"


def _many_bands(source):
    np.save(source / "images" / "train" / "0.npy", np.zeros((20, 30, 17), np.uint8))
    return r"0.npy has the shape \[20, 30, 17\]; an image is .* with at most 16 bands"


def _damaged(source):
    (source / "images" / "train" / "3.npy").write_bytes(b"\x93NUMPY nothing")
    return "3.npy cannot be read as an image: .*--skip-damaged leaves such images out"


def _damaged_tiff(source):
    path = source / "images" / "train" / "3.npy"
    write_tiff(path.with_suffix(".tif"), noise(20, 30, dtype="float32"), planarconfig="contig")
    path.unlink()
    data = path.with_suffix(".tif").read_bytes()
    path.with_suffix(".tif").write_bytes(data[: len(data) // 4])
    return "3.tif cannot be read as an image"


@pytest.mark.filterwarnings("ignore:Truncated File Read")
@pytest.mark.parametrize(
    "damage",
    [_nan, _other_bands, _a_photo, _whole_numbers, _many_bands, _damaged, _damaged_tiff],
)
def test_wrong_images_are_refused_in_one_line_and_leave_nothing(tmp_path, damage):
    write_set(tmp_path / "in", "float32")
    message = damage(tmp_path / "in")
    with pytest.raises(UserError, match=message) as error:
        sets.prepare("folder", tmp_path / "data", source=tmp_path / "in")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "data" / "folder").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rgb": [0, 1, 5]}, r"--rgb 0,1,5: name three of the bands 0\.\.4"),
        ({"rgb": [0, 1]}, "--rgb 0,1: name three of the bands"),
        ({"max_side": 0}, "--max_side 0: give a number of pixels"),
    ],
)
def test_wrong_options_are_refused(tmp_path, options, message):
    write_set(tmp_path / "in")
    with pytest.raises(UserError, match=message):
        sets.prepare("folder", tmp_path / "data", source=tmp_path / "in", **options)


def test_rgb_is_for_bands_alone(tmp_path):
    for kind, pixels in (("images", noise(8, 8, 3, "uint8")), ("labels", np.eye(8, dtype="u1"))):
        (tmp_path / "in" / kind).mkdir(parents=True)
        for name in "abcdefghij":
            Image.fromarray(pixels).save(tmp_path / "in" / kind / f"{name}.png")
    with pytest.raises(UserError, match=r"--rgb is for images of several bands, and .*a\.png is a"):
        sets.prepare("folder", tmp_path / "data", source=tmp_path / "in", rgb=[2, 1, 0])


def test_a_missing_library_is_named(tmp_path, monkeypatch):
    write_tiff(tmp_path / "a.tif", noise(20, 30), planarconfig="contig")
    monkeypatch.setitem(__import__("sys").modules, "tifffile", None)
    with pytest.raises(UserError, match=re.escape('pip install "kdjax[bands]"')):
        form_of(tmp_path / "a.tif")


# --- augmentation ---


def held(dtype, channels=5):
    examples = []
    for index, (height, width) in enumerate(SIZES):
        label = np.random.default_rng(index).integers(0, 4, (height, width)).astype(np.uint8)
        examples.append({"image": noise(height, width, channels, dtype, index), "label": label})
    bands = measure_bands([example["image"] for example in examples])
    return InMemoryExamples(examples, bands=bands)


def crops(source, options, seed):
    """Returns crops on the host and on the device."""
    draws = draw(options, seed, range(len(SIZES)))
    host = []
    for index in range(len(SIZES)):
        label, read_window = source.decode(tf.constant(index, tf.int64))
        own = type(draws)(*(value[index] for value in draws))
        host.append(augment(read_window, label, own, options)["image"].numpy())
    device = jax.jit(functools.partial(augment_batch, options=options))(
        source.padded(), np.arange(len(SIZES), dtype=np.int32), draws
    )
    return np.stack(host), np.asarray(device["image"])


@pytest.mark.parametrize("dtype", LIMITS)
def test_host_and_device_make_the_same_crops(dtype):
    source = held(dtype)
    options = AugmentOptions((24, 24), photometric=False, bands=source.bands)
    for seed in range(4):
        host, device = crops(source, options, seed)
        assert host.shape == device.shape == (3, 24, 24, 5)
        if dtype == "uint8":
            np.testing.assert_array_equal(host, device)
        else:
            assert host.dtype == device.dtype == np.float32
            np.testing.assert_allclose(host, device, rtol=1e-6, atol=1e-6 * LIMITS[dtype])


def test_every_band_is_scaled_like_a_photo():
    """Five bands of 8 bits give the same pixels as photos of three of them."""
    five = held("uint8")
    three = InMemoryExamples(
        [
            {"image": five._images[index][..., 1:4], "label": five._labels[index]}
            for index in range(len(SIZES))
        ]
    )
    inside = AugmentOptions((12, 12), scale_range=(1.0, 2.0), photometric=False)
    more = AugmentOptions((12, 12), scale_range=(1.0, 2.0), photometric=False, bands=five.bands)
    for seed in range(3):
        np.testing.assert_array_equal(
            crops(five, more, seed)[0][..., 1:4], crops(three, inside, seed)[0]
        )


def test_padding_is_the_mean_of_each_band():
    source = held("float32")
    options = AugmentOptions((64, 64), scale_range=(1.0, 1.0), flip=False, bands=source.bands)
    host, _ = crops(source, options, 0)
    np.testing.assert_allclose(host[0, -1, -1], source.bands.mean, rtol=1e-6)


# --- a user's own set ---


def own(dtype="uint16", bands=None):
    images = [noise(20, 30, 5, dtype, index) for index in range(4)]
    examples = [{"image": image, "label": np.zeros((20, 30), int)} for image in images]
    return Dataset({"train": examples}, ["a"], bands=bands or measure_bands(images)), images


def test_an_own_set_gives_its_numbers():
    data, images = own()
    found = list(data.records("train").decoded(range(4)))
    for example, image in zip(found, images, strict=True):
        np.testing.assert_array_equal(example["image"], image)
    assert data.fingerprint != own()[0]._error  # is computed
    other = data.bands._replace(mean=(0.0,) * 5)
    assert own(bands=other)[0].fingerprint != data.fingerprint


@pytest.mark.parametrize(
    ("dtype", "message"),
    [("uint8", r"it must be uint16 of shape \(H, W, 5\)"), ("float32", "it must be uint16")],
)
def test_an_own_set_of_other_numbers_is_refused(dtype, message):
    data, _ = own(dtype, bands=measure_bands([noise(4, 4)]))
    with pytest.raises(UserError, match=message):
        list(data.records("train").decoded([0]))


def test_bands_are_checked():
    with pytest.raises(UserError, match="bands has 5 bands of int32; images have 1 to 16 bands of"):
        own(bands=Bands("int32", (0.0,) * 5, (1.0,) * 5))
    with pytest.raises(UserError, match=r"bands.rgb 0,1,7: name three of the bands 0\.\.4"):
        own(bands=Bands("uint16", (0.0,) * 5, (1.0,) * 5, (0, 1, 7)))
    with pytest.raises(UserError, match="images have different bands: 5 of uint16, and 4 of uint1"):
        measure_bands([noise(4, 4), noise(4, 4, 4)])
    with pytest.raises(UserError, match="there is no image"):
        measure_bands([])


def test_a_constant_band_has_no_deviation_of_zero():
    assert measure_bands([np.full((4, 4, 1), 7, np.uint16)]) == Bands(
        "uint16", (7.0,), (1.0,), (0, 0, 0)
    )


def test_values_are_stored_compressed():
    pixels = np.zeros((64, 64, 5), np.uint16)
    (stored,) = records.encode_bands(pixels, tiled=False)
    assert len(stored) < pixels.nbytes / 10
    assert zlib.decompress(stored) == pixels.tobytes()


def test_photos_have_the_bands_of_photos(tmp_path):
    assert sets.prepare("shapes", tmp_path).bands == RGB
