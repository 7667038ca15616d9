"""The teacher cache: its content, the scores of crops, and its errors."""

import contextlib
import io
import json
import pathlib
import shutil
import threading
import time
from types import SimpleNamespace
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from ml_collections import ConfigDict
from PIL import Image
from safetensors.numpy import save_file

from kdjax import config as configuration
from kdjax import models
from kdjax.comparison.compare import compare
from kdjax.data import sets
from kdjax.data.run_data import RunData
from kdjax.distillation import Distiller
from kdjax.evaluation.evaluator import TrainedNetwork
from kdjax.experiment.build import build_distiller
from kdjax.experiment.input_pipeline import make_input_pipeline
from kdjax.experiment.run import Run, train_run
from kdjax.experiment.workdir import Workdir
from kdjax.models import NNXNetwork, serialization
from kdjax.models.layers import resize
from kdjax.models.outputs import IMAGENET, MEAN_ONLY
from kdjax.teachers import map_files
from kdjax.teachers.cache import TeacherCache
from kdjax.teachers.compression import Compression
from kdjax.teachers.network_maps import NetworkMaps
from kdjax.teachers.precomputed_logits import PrecomputedLogits
from kdjax.teachers.sampling import CachedMaps, sample_map
from kdjax.training.sharding import Placement
from kdjax.utils import processes
from kdjax.utils.errors import UserError
from kdjax.utils.log import RunLogger

RNG = np.random.default_rng(0)
CLASSES = 4
SIZES = {"same": [(24, 32)], "varied": [(24, 32), (20, 40), (33, 17)]}


@pytest.fixture(scope="session")
def data_dirs(tmp_path_factory):
    """Makes two data sets of nine random images: of one size, and of three sizes."""
    found = {}
    generator = np.random.default_rng(0)
    for name, sizes in SIZES.items():
        source, found[name] = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp(name)
        for split, count in {"train": 9, "val": 2}.items():
            for index in range(count):
                size = sizes[index % len(sizes)]
                label = generator.integers(0, CLASSES, size).astype(np.uint8)
                image = generator.integers(0, 256, (*size, 3)).astype(np.uint8)
                for kind, pixels in (("images", image), ("labels", label)):
                    path = source / kind / split / f"{index}.png"
                    path.parent.mkdir(parents=True, exist_ok=True)
                    Image.fromarray(pixels).save(path)
        sets.prepare("folder", found[name], source=source)
    return {name: str(path) for name, path in found.items()}


@pytest.fixture(scope="session")
def teachers(tmp_path_factory):
    """Makes three checkpoints: a teacher, other weights, and another normalization."""
    root = tmp_path_factory.mktemp("teachers")
    for name, seed, preprocessing in (
        ("teacher", 1, IMAGENET),
        ("other", 2, IMAGENET),
        ("unscaled", 1, MEAN_ONLY),
    ):
        net = models.create("tiny", num_classes=CLASSES, width=6, rngs=nnx.Rngs(seed))
        info = serialization.NetworkInfo(
            "tiny",
            CLASSES,
            6,
            True,
            ("c",) * CLASSES,
            ((0, 0, 0),) * CLASSES,
            preprocessing=preprocessing,
        )
        serialization.save(root / name, info, NNXNetwork.of(net)[1])
    return root


def make_config(data_dirs, teachers, cache):
    """Returns a config whose crops are whole images with changed colors."""
    config = configuration.default()
    config.steps = 3
    config.log_every = 1
    config.eval_every = 2
    config.data.update({"name": "folder", "data_dir": data_dirs["same"], "batch_size": 8})
    config.data.update({"eval_batch_size": 8, "crop_size": (24, 32), "scale_range": (1.0, 1.0)})
    config.data.update({"max_class_share": 1.0, "flip": False})
    config.student.update(configuration.network("tiny", width=4))
    config.teacher.checkpoint = str(teachers / "teacher")
    config.teacher.view = "clean"
    config.teacher.cache = str(cache)
    with config.unlocked():
        config.terms = ConfigDict(
            {name: configuration.term(name) for name in ("cwd", "pixelwise_kl")}
        )
    return config


@pytest.fixture
def config(data_dirs, teachers, tmp_path):
    return make_config(data_dirs, teachers, tmp_path / "cache")


def opened(config, others=()):
    """Returns the cache of a config, and its images."""
    configuration.read(config)
    images = RunData(config.data)
    teacher = TrainedNetwork.load(config.teacher.checkpoint)
    student = models.create("tiny", num_classes=CLASSES, width=4, rngs=nnx.Rngs(0))
    distiller = build_distiller(
        config,
        NNXNetwork.of(student),
        (teacher.network, teacher.variables),
        num_classes=CLASSES,
    )
    assert distiller is not None
    names = {name for loss in distiller.terms.values() for name in loss.names("teacher")}
    scores = NetworkMaps(config, images, teacher, sorted(names), others)
    return TeacherCache(config, images, scores, distiller, RunLogger("test")), images


def losses_of(config, workdir):
    train_run(Run(configuration.read(config), Workdir(workdir), "test", "student", "distilled"))
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    keys = ("train/cwd", "train/pixelwise_kl", "train/cross_entropy")
    return np.array([[line[key] for key in keys] for line in lines if "train/loss" in line])


@pytest.fixture(scope="module")
def cached(data_dirs, teachers, tmp_path_factory):
    """Runs with a cache; returns the cache, the losses, and the output."""
    root, printed = tmp_path_factory.mktemp("cached"), io.StringIO()
    with contextlib.redirect_stdout(printed):
        losses = losses_of(make_config(data_dirs, teachers, root / "cache"), root / "run")
    return root / "cache", losses, printed.getvalue()


def reference(scores, size, place, crop_size, grid):
    """Samples a map for a crop, one cell at a time, in float64."""
    result = np.zeros((*grid, scores.shape[-1]))
    for cell in np.ndindex(*grid):
        point = []
        for axis in (0, 1):
            scaled, corner = int(place[axis]), int(place[2 + axis])
            last = min(corner + crop_size[axis], scaled) - 1
            pixel = corner + (cell[axis] + 0.5) * crop_size[axis] / grid[axis] - 0.5
            pixel = min(pixel, last)
            if axis == 1 and place[4]:
                pixel = last + corner - pixel
            point.append(np.clip((pixel + 0.5) / scaled * size[axis] - 0.5, 0, size[axis] - 1))
        top, left = (min(int(p), n - 1) for p, n in zip(point, size, strict=True))
        bottom, right = min(top + 1, size[0] - 1), min(left + 1, size[1] - 1)
        down, across = point[0] - top, point[1] - left
        result[cell] = (1 - down) * (
            (1 - across) * scores[top, left] + across * scores[top, right]
        ) + down * ((1 - across) * scores[bottom, left] + across * scores[bottom, right])
    return result


@pytest.mark.parametrize("grid", [(6, 8), (13, 19), (3, 5)])
def test_the_whole_image_sees_the_map_resized(grid):
    scores = RNG.normal(size=(2, 6, 8, 3)).astype(np.float32)
    places = np.array([[48, 64, 0, 0, 0]] * 2)
    found = sample_map(scores, np.array([[6, 8]] * 2), places, (48, 64), grid)
    np.testing.assert_allclose(found, resize(jnp.asarray(scores), grid), rtol=1e-5, atol=1e-5)


def test_crops_see_what_the_reference_sees():
    # Enlarged and reduced, mirrored or not, at several corners, and beyond the image's edge.
    places = [
        *([70, 90, 13, 40, 0], [70, 90, 13, 40, 1], [48, 64, 16, 32, 1]),
        *([30, 41, 0, 9, 0], [25, 20, 0, 0, 0], [25, 20, 0, 0, 1]),
    ]
    sizes = [(6, 8), (5, 8), (6, 7), (6, 8), (4, 3), (4, 3)]
    scores = np.zeros((len(sizes), 6, 8, 3), np.float32)
    for row, (height, width) in enumerate(sizes):
        scores[row, :height, :width] = RNG.normal(size=(height, width, 3)) + 5
    found = sample_map(scores, np.array(sizes), np.array(places), (32, 32), (4, 8))
    for row, values in enumerate(zip(scores, sizes, places, strict=True)):
        expected = reference(*values, (32, 32), (4, 8))
        np.testing.assert_allclose(found[row], expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("num_classes", [9, 300])
def test_the_highest_scores_keep_their_probabilities_and_the_rest_its_mass(num_classes):
    logits = 3 * RNG.normal(size=(2, 5, num_classes)).astype(np.float32)
    compression = Compression(num_classes, scores=True, keep=3)
    kept = compression.compress(jnp.asarray(logits))
    assert kept["classes"].dtype == (jnp.uint8 if num_classes <= 256 else jnp.uint16)
    assert kept["highest"].dtype == kept["rest"].dtype == jnp.bfloat16
    rebuilt = compression.expand(kept)
    assert rebuilt.shape == logits.shape
    before, after = (np.asarray(jax.nn.softmax(jnp.float32(x))) for x in (logits, rebuilt))
    order = np.argsort(-logits, -1)
    highest, others = order[..., :3], order[..., 3:]
    for chosen in (highest[..., :1], highest[..., 1:2], highest[..., 2:]):
        np.testing.assert_allclose(
            *(np.take_along_axis(x, chosen, -1) for x in (after, before)), rtol=0.06
        )
    rest = np.take_along_axis(after, others, -1)
    np.testing.assert_array_equal(rest, rest[..., :1] + np.zeros_like(rest))
    mass = np.take_along_axis(before, others, -1).sum(-1)
    np.testing.assert_allclose(rest.sum(-1), mass, rtol=0.06)


@pytest.mark.parametrize("scores", [True, False])
def test_all_scores_and_features_are_kept_in_bfloat16(scores):
    values = jnp.asarray(RNG.normal(size=(5, 7)), jnp.float32)
    compression = Compression(7, scores=scores)
    np.testing.assert_array_equal(
        compression.expand(compression.compress(values)), values.astype(jnp.bfloat16)
    )


def test_features_of_8_bits_are_within_a_level_of_their_cell():
    values = RNG.normal(size=(6, 33)).astype(np.float32) * np.logspace(-3, 3, 6)[:, None]
    values[0] = 0
    compression = Compression(33, scores=False, features="int8")
    stored = compression.compress(jnp.asarray(values))
    assert stored["levels"].dtype == jnp.int8
    found = np.asarray(compression.expand(stored), np.float32)
    largest = np.abs(values).max(-1, keepdims=True)
    # Half a level, and the rounding of the scale and of the product to bfloat16.
    assert (np.abs(found - values) <= (0.5 / 127 + 2**-8) * largest).all()
    assert compression.num_bytes(np.array([[2, 3]])) == 6 * (33 + 2)


@pytest.mark.thorough
@pytest.mark.parametrize("keep", [0, 2])
def test_batches_bring_the_scores_of_their_images(config, data_dirs, keep):
    config.data.update({"data_dir": data_dirs["varied"], "crop_size": (16, 24), "flip": True})
    config.data.update({"scale_range": (0.5, 2.0), "photometric": False})
    config.teacher.cache_classes = keep
    teacher = TrainedNetwork.load(config.teacher.checkpoint)
    net = teacher.network.module(teacher.variables)
    examples = None
    found = {}
    for place in ("none", "host", "device"):
        config.data.cache = place
        cache, images = opened(config)
        source = make_input_pipeline(
            *(images, Placement()),
            **{"first_step": 2, "steps": 4, "seed": 3, "clean_view": False},
            cache=cache.open(),
        )
        step = jax.jit(source.expand)
        found[place] = [jax.device_get(step(batch)) for batch in source.batches]
        examples = examples or list(images._source.decoded())
    for streamed, host, device in zip(*found.values(), strict=True):
        assert streamed.keys() == {"image", "label", "place", "index", "teacher"}
        jax.tree.map(np.testing.assert_array_equal, streamed, host)
        jax.tree.map(np.testing.assert_array_equal, streamed, device)
        assert streamed["place"][:, 4].any()
        values, sizes = streamed["teacher"].maps["logits"]
        assert values.shape == (8, 5, 5, CLASSES)  # of the largest maps
        for row, index in enumerate(streamed["index"]):
            image = examples[index]["image"]
            logits = np.asarray(net(IMAGENET(jnp.asarray(image[None]))).logits)[0]
            size = sizes[row]
            np.testing.assert_array_equal(size, logits.shape[:2])
            scores = values[row, : size[0], : size[1]].astype(np.float32)
            if keep:
                form = Compression(CLASSES, scores=True, keep=keep)
                logits = np.asarray(form.expand(form.compress(logits)), np.float32)
            np.testing.assert_allclose(scores, logits, rtol=0.02, atol=0.01)


def test_places_say_what_crops_show(config):
    config.data.update({"crop_size": (16, 48), "flip": True, "photometric": False})
    config.data.cache = "host"
    images = RunData(config.data)
    examples = list(images._source.decoded())
    mirrored = set()
    for batch in images.train_batches(first_step=0, steps=2, seed=0, place=True):
        for image, place, index in zip(
            *(batch[key] for key in ("image", "place", "index")), strict=True
        ):
            height, width, row, column, flip = place
            assert (height, width, column) == (24, 32, 0)
            shown = examples[index]["image"][row : row + 16]
            np.testing.assert_array_equal(image[:, :32], shown[:, ::-1] if flip else shown)
            mirrored.add(int(flip))
    assert mirrored == {0, 1}


def test_a_cached_run_learns_what_the_live_teacher_teaches(config, cached, tmp_path):
    _, losses, out = cached
    assert "test: teacher cache: 9 of 9 images" in out
    assert "all scores, 0.0 MiB, made in" in out
    assert "s; of whole images at scale 1, in their own colors" in out
    config.teacher.cache = ""
    live = losses_of(config, tmp_path / "live")
    np.testing.assert_allclose(losses, live, rtol=2e-3)


@pytest.mark.parametrize("read", ["logits", "aux_logits"])
def test_a_term_may_read_scores_of_another_size_than_the_cached_ones(read):
    """The cache serves scores at the size of the student's logits, whatever map a term reads."""
    image, classes = (24, 32), 3
    student = {"logits": jnp.ones((2, 3, 4, classes)), "aux_logits": jnp.ones((2, 6, 8, classes))}
    distiller = Distiller(
        {"kl": configuration.term("pixelwise_kl", student=read)},
        student=student,
        teacher={"logits": jnp.ones((2, 6, 8, classes))},
        image_size=image,
    )
    scores = jnp.zeros((2, 6, 8, classes)).at[..., 0].set(4.0)
    places = jnp.array([[*image, 0, 0, 0]] * 2)
    maps = {"logits": (scores, jnp.full((2, 2), jnp.array([6, 8])))}
    cached = CachedMaps(maps, places, image, ())
    labels = jnp.zeros((2, *image), jnp.int32)

    def value(teacher):
        loss, _ = distiller(
            *distiller.init(jax.random.key(0)),
            *(student, teacher, labels),
            **{"step": 0, "steps": 1, "key": jax.random.key(0)},
        )
        return loss

    np.testing.assert_allclose(
        value(cached.like(student)), value({"logits": scores}), rtol=1e-6, err_msg=read
    )


@pytest.mark.thorough
def test_a_cached_run_continues(config, cached, tmp_path, monkeypatch):
    cache, whole, _ = cached
    made = {p: p.stat().st_mtime_ns for p in cache.rglob("*")}
    config.teacher.cache = str(cache)
    real, calls = RunData.train_batches, []

    def stops_early(self, *, first_step, **options):
        calls.append(first_step)
        for index, batch in enumerate(real(self, first_step=first_step, **options)):
            if first_step == 0 and index == 2:
                raise KeyboardInterrupt
            yield batch

    config.data.cache = "host"
    config.eval_every = 1
    config.steps = 3
    monkeypatch.setattr(RunData, "train_batches", stops_early)
    with pytest.raises(KeyboardInterrupt):
        losses_of(config, tmp_path / "cut")
    continued = losses_of(config, tmp_path / "cut")
    assert calls == [0, 1]
    np.testing.assert_allclose(continued, whole, rtol=1e-5)
    assert {p: p.stat().st_mtime_ns for p in cache.rglob("*")} == made


def test_a_cache_of_something_else_is_refused(config, data_dirs, teachers, tmp_path):
    opened(config)[0].open()

    def fails(message, **changes):
        changed = config.copy_and_resolve_references()
        with changed.unlocked():
            changed.update_from_flattened_dict(changes)
        with pytest.raises(UserError, match=message):
            opened(changed)

    another = "; choose another directory"
    other, unscaled = str(teachers / "other"), str(teachers / "unscaled")
    fails(
        rf"of another run \(teacher .*tiny .{{16}} in float32.* there, .*tiny .*{another}",
        **{"teacher.checkpoint": other},
    )
    fails(rf"another run \(teacher .*\[\[123.*{another}", **{"teacher.checkpoint": unscaled})
    fails(
        rf"another run \(data \[\['\w{{16}}', 'train'\]\] there, .* now\){another}",
        **{"data.data_dir": data_dirs["varied"]},
    )
    fails(rf"another run \(data .*'val'\)\] now\){another}", **{"data.train_split": "val"})
    fails(rf"another run \(cache_classes 0 there, 2 now\){another}", **{"teacher.cache_classes": 2})
    fails("cache_classes is 4; the teacher scores 4 classes", **{"teacher.cache_classes": 4})
    fails("cache_classes is -1; it must be 0", **{"teacher.cache_classes": -1})
    fails("gs://x/y; it is mapped into memory", **{"teacher.cache": "gs://x/y"})
    fails("holds something else than a cache", **{"teacher.cache": str(tmp_path)})
    fails('cwd.resize is "student", but', **{"terms.cwd.resize": "student"})
    more = configuration.extra_set("folder", data_dir=data_dirs["varied"], labelled=False)
    fails("of another run \\(data", **{"data.mixture.more": more})


def test_nothing_is_written_for_a_cache_that_is_refused(config, teachers, tmp_path):
    opened(config)[0].open()
    config.teacher.checkpoint = str(teachers / "other")
    with pytest.raises(UserError, match="of another run"):
        losses_of(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_an_interrupted_cache_continues(config, tmp_path, monkeypatch, capsys):
    config.data.eval_batch_size = 4
    cache, _ = opened(config)
    real, asked = NetworkMaps.maps, []

    def breaks(self, stored, skip):
        asked.append(int(skip.sum()))
        for count, item in enumerate(real(self, stored, skip)):
            if count == 4 and len(asked) == 1:
                raise KeyboardInterrupt
            yield item

    monkeypatch.setattr(NetworkMaps, "maps", breaks)
    with pytest.raises(KeyboardInterrupt):
        cache.open()
    assert {path.name for path in (tmp_path / "cache").iterdir()} == {".logits.unfinished"}
    rows = cache.open().rows([*range(9)])["logits"]
    assert asked == [0, 4]
    assert "teacher cache: continues after 4 images" in capsys.readouterr().out
    assert {path.name for path in (tmp_path / "cache").iterdir()} == {"logits"}
    config.teacher.cache = str(tmp_path / "whole")
    whole = opened(config)[0].open().rows([*range(9)])["logits"]
    np.testing.assert_array_equal(rows["values"], whole["values"])


@pytest.mark.parametrize("killed", ["_checksum", "_sync", "rename"])
def test_a_cache_that_is_killed_while_it_is_finished_continues(
    config, tmp_path, monkeypatch, killed
):
    def dies(*_):
        raise KeyboardInterrupt

    cache, _ = opened(config)
    place = {"_sync": map_files.MapWriter, "rename": pathlib.Path}.get(killed, map_files)
    with monkeypatch.context() as patch:
        patch.setattr(place, killed, dies)
        with pytest.raises(KeyboardInterrupt):
            cache.open()
    if killed == "rename":  # the disk has no other space than that of the maps
        monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=0))
    assert cache.open().rows([0])["logits"]["values"].astype(np.float32).any()
    left = {path.name for path in (tmp_path / "cache" / "logits").iterdir()}
    assert left == {"cache.json", "sizes.npy", "values.npy"}


def test_a_cache_holds_the_maps_of_images_in_the_base_size(config):
    config.data.base_size = (48, 40)
    cache, images = opened(config)
    rows = cache.open().rows([0])["logits"]
    network = TrainedNetwork.load(config.teacher.checkpoint)
    example = next(iter(images._source.decoded()))["image"][None]
    pixels = resize(jnp.asarray(example, jnp.float32), (36, 48))  # fits 24 x 32 into the box
    expected = network.network.module(network.variables)(IMAGENET(pixels)).logits[0]
    np.testing.assert_array_equal(rows["size"][0], expected.shape[:2])
    np.testing.assert_allclose(rows["values"][0].astype(np.float32), expected, rtol=0.01, atol=0.01)
    config.data.base_size = ()
    with pytest.raises(UserError, match=r"is of another run"):
        opened(config)[0].open()


def test_unfinished_files_of_another_teacher_are_not_continued(config, tmp_path, monkeypatch):
    real = NetworkMaps.maps

    def breaks(self, stored, skip):
        yield next(real(self, stored, skip))
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(NetworkMaps, "maps", breaks)
        with pytest.raises(KeyboardInterrupt):
            opened(config)[0].open()
    config.teacher.cache_classes = 2
    rows = opened(config)[0].open().rows([*range(9)])["logits"]
    assert rows["highest"].astype(np.float32).any((1, 2, 3)).all()


@pytest.mark.parametrize("kind", ["int8", "bfloat16"])
def test_a_cache_of_features_serves_the_maps_of_whole_crops(config, kind):
    """Crops here are whole images, so the cached map is the live one."""
    config.teacher.cache_features = kind
    with config.unlocked():
        config.terms = ConfigDict(
            {"nfd": configuration.term("nfd", student="stage4", teacher="stage4")}
        )
    cache, images = opened(config)
    found = cache.open()
    assert found.maps.keys() == {"stage4"}
    source = make_input_pipeline(
        *(images, Placement()),
        **{"first_step": 0, "steps": 1, "seed": 3, "clean_view": False},
        cache=found,
    )
    batch = jax.device_get(jax.jit(source.expand)(next(source.batches)))
    maps = batch["teacher"].like({"logits": jnp.zeros((8, 3, 4, CLASSES))})
    teacher = TrainedNetwork.load(config.teacher.checkpoint)
    examples = list(images._source.decoded())
    for row, index in enumerate(batch["index"]):
        pixels = IMAGENET(jnp.asarray(examples[index]["image"][None]))
        output, _ = teacher.network.apply(teacher.variables, pixels, train=False, key=None)
        live = np.asarray(output.maps["stage4"])[0]
        tolerance = np.abs(live).max() * (0.02 if kind == "int8" else 0.01)
        np.testing.assert_allclose(maps["stage4"][row], live, atol=tolerance, rtol=0)


def test_runs_that_read_different_maps_share_a_cache(config, tmp_path):
    opened(config)[0].open()
    made = (tmp_path / "cache" / "logits" / "values.npy").stat().st_mtime_ns
    with config.unlocked():
        config.terms.nfd = configuration.term("nfd", student="stage4", teacher="stage4")
    assert opened(config)[0].open().maps.keys() == {"logits", "stage4"}
    assert (tmp_path / "cache" / "logits" / "values.npy").stat().st_mtime_ns == made


def test_a_cache_covers_the_unlabelled_photos_of_a_mixture(config, data_dirs, tmp_path):
    config.data.crop_size = (16, 16)
    with config.unlocked():
        config.data.mixture.more = configuration.extra_set(
            "folder", data_dir=data_dirs["varied"], labelled=False
        )
    found, images = opened(config)
    rows = found.open().rows([*range(18)])["logits"]
    teacher = TrainedNetwork.load(config.teacher.checkpoint)
    net = teacher.network.module(teacher.variables)
    for index, example in enumerate(images._source.decoded()):
        logits = np.asarray(net(IMAGENET(jnp.asarray(example["image"][None]))).logits)[0]
        height, width = rows["size"][index]
        values = rows["values"][index, :height, :width].astype(np.float32)
        np.testing.assert_allclose(values, logits, rtol=0.02, atol=0.01)
    assert np.isfinite(losses_of(config, tmp_path / "run")).all()


def test_an_expensive_teacher_averages_views_and_networks(config, teachers):
    """The scores are the mean probabilities of two scales, mirrored or not, of two networks."""
    config.teacher.update({"scales": (1.0, 1.5), "flip": True})
    config.teacher.ensemble = (str(teachers / "other"),)
    others = [TrainedNetwork.load(path) for path in config.teacher.ensemble]
    cache, images = opened(config, others)
    rows = cache.open().rows([0])["logits"]
    example = next(iter(images._source.decoded()))["image"][None]
    total = 0
    for path in (config.teacher.checkpoint, *config.teacher.ensemble):
        network = TrainedNetwork.load(path)
        net = network.network.module(network.variables)
        for scale in (1.0, 1.5):
            for step in (1, -1):
                size = int(24 * scale), int(32 * scale)
                pixels = resize(jnp.asarray(example[:, :, ::step], jnp.float32), size)
                scores = resize(resize(net(IMAGENET(pixels)).logits, size), (24, 32))
                total += jax.nn.softmax(scores[:, :, ::step])
    expected = resize(jnp.log(resize(total / 8, (3, 4))), (3, 4))
    np.testing.assert_allclose(
        rows["values"][0].astype(np.float32), expected[0], rtol=0.01, atol=0.01
    )
    config.teacher.scales, config.teacher.flip = (1.0,), False
    config.teacher.ensemble = ()
    with pytest.raises(UserError, match=r"is of another run \(.*views .* there, None now"):
        opened(config)[0].open()


def test_a_cache_refuses_values_that_are_not_finite(config, teachers, tmp_path):
    teacher = TrainedNetwork.load(teachers / "teacher")
    hidden = jax.tree.map_with_path(
        lambda path, leaf: (
            leaf.at[1].set(-jnp.inf) if leaf.shape == (CLASSES,) and "bias" in str(path) else leaf
        ),
        teacher.variables,
    )
    serialization.save(tmp_path / "hidden", teacher.info, hidden)
    config.teacher.checkpoint = str(tmp_path / "hidden")
    with pytest.raises(UserError, match=r'map "logits" of the training image .*0 holds values'):
        opened(config)[0].open()
    assert not (tmp_path / "cache" / "logits").exists()


def test_an_expensive_teacher_needs_a_cache_and_class_scores(config, tmp_path):
    config.teacher.scales = (1.0, 2.0)
    with config.unlocked():
        config.terms.nfd = configuration.term("nfd", student="stage4", teacher="stage4")
    with pytest.raises(UserError, match=r'average class scores, but a term reads "stage4"'):
        losses_of(config, tmp_path / "run")
    config.teacher.cache = ""
    with pytest.raises(UserError, match=r"name a directory for them in config\.teacher\.cache"):
        losses_of(config, tmp_path / "run")


def test_cached_scores_need_the_size_of_the_students(config):
    maps = {"stage4": np.zeros((1, 3, 4, 8)), "logits": np.zeros((1, 3, 4, CLASSES))}
    distiller = Distiller(
        {"across": configuration.term("nfd", student="stage4", teacher="logits")},
        student={"stage4": maps["stage4"]},
        teacher=maps,
    )
    with pytest.raises(UserError, match=r"config\.terms\.across reads .* but the student has none"):
        TeacherCache(config, cast(Any, None), cast(Any, None), distiller, RunLogger("test"))


def test_a_damaged_cache_is_named(config, tmp_path, capsys):
    cache, _ = opened(config)
    cache.open()
    scores = tmp_path / "cache" / "logits" / "values.npy"
    content = bytearray(scores.read_bytes())
    content[-10] ^= 1
    scores.write_bytes(content)
    damage = r"damaged \(values\.npy has another checksum\); remove it, and it is made again"
    with pytest.raises(UserError, match=damage):
        cache.open()
    (tmp_path / "cache" / "logits" / "sizes.npy").unlink()
    with pytest.raises(UserError, match=r"damaged \(.*sizes.npy"):
        cache.open()
    (tmp_path / "cache" / "logits" / "cache.json").write_text("{")
    with pytest.raises(UserError, match=r"cache.json is damaged"):
        cache.open()


def test_a_disk_that_is_too_small_is_named(config, monkeypatch):
    cache, _ = opened(config)
    monkeypatch.setattr(Compression, "num_bytes", lambda *args: 2**60)
    with pytest.raises(UserError, match=r"takes 1099511627776 MiB; its disk has \d+. Set"):
        cache.open()


def test_the_leading_process_makes_it_for_the_others(config, monkeypatch):
    cache, _ = opened(config)
    leads = [False]
    monkeypatch.setattr(processes, "lead", lambda work: work() if leads[0] else None)
    with pytest.raises(UserError, match="left no cache here; it must be on a disk that all"):
        cache.open()
    leads[0] = True
    cache.open()
    leads[0] = False
    monkeypatch.delattr(TeacherCache, "_make")
    cache.open()


def test_runs_at_once_make_it_once(config, monkeypatch, capsys):
    """The second run waits for the first, logs that it waits, and uses the first one's cache."""
    (first, _), (second, _) = opened(config), opened(config)
    real, calls = NetworkMaps.maps, []
    waiter = threading.Thread(target=second.open)

    def slowly(self, stored, skip):
        calls.append(self)
        waiter.start()
        while "waits" not in capsys.readouterr().out:
            time.sleep(0.05)
        yield from real(self, stored, skip)

    monkeypatch.setattr(NetworkMaps, "maps", slowly)
    first.open()
    waiter.join()
    assert calls == [first._maps]


@pytest.fixture(scope="module")
def written(data_dirs, teachers, tmp_path_factory):
    """Writes the teacher's scores to files of both kinds, and its classes."""
    folder = tmp_path_factory.mktemp("written")
    config = make_config(data_dirs, teachers, folder / "cache")
    config.data.data_dir = data_dirs["varied"]
    images = RunData(config.data)
    teacher = TrainedNetwork.load(config.teacher.checkpoint)
    (folder / "classes.txt").write_text("\n".join(images.class_names) + "\n")
    for number, (name, example) in enumerate(
        zip(images.names("train"), images._source.decoded(), strict=True)
    ):
        pixels = teacher.info.preprocessing(example["image"][None])
        output, _ = teacher.network.apply(teacher.variables, pixels, train=False, key=None)
        found = np.asarray(output.logits[0])
        if number % 2:
            save_file({"logits": found, "other": found[:1]}, folder / f"{name}.safetensors")
        else:
            np.save(folder / f"{name}.npy", found)
    return folder


@pytest.fixture
def logits(config, data_dirs, written, tmp_path):
    """Copies the files, and sets the config to their images."""
    config.data.data_dir = data_dirs["varied"]
    return shutil.copytree(written, tmp_path / "logits")


@pytest.mark.thorough
@pytest.mark.parametrize("keep", [0, 2])
def test_of_logits_from_elsewhere_as_much_is_kept_as_of_their_network(config, logits, keep):
    config.teacher.cache_classes = keep
    cache, images = opened(config)
    stored, skip = cache._compressions, np.zeros(9, bool)
    network = dict(cache._maps.maps(stored, skip))
    given = dict(PrecomputedLogits(str(logits), images, keep).maps(stored, skip))
    assert network.keys() == given.keys() == {*range(9)}
    for index, expected in network.items():
        for name, values in expected["logits"].items():
            # bfloat16 values may differ in the last bit.
            tolerance = {"rtol": 0 if name == "classes" else 0.01}
            found = given[index]["logits"][name].astype(np.float32)
            np.testing.assert_allclose(found, values.astype(np.float32), **tolerance)


@pytest.mark.thorough
def test_logits_from_elsewhere_teach_as_their_network_does(config, logits, tmp_path):
    network = losses_of(config, tmp_path / "network")
    config.teacher.checkpoint, config.teacher.logits = "", str(logits)
    config.teacher.cache = str(tmp_path / "made")
    np.testing.assert_allclose(losses_of(config, tmp_path / "given"), network, rtol=1e-4)
    path, fingerprint = Workdir(tmp_path / "given").read_result()["teacher"]
    assert (path, len(fingerprint)) == (str(logits), 16)
    # With other logits, no run continues, and no cache is reused.
    name = next(iter(sorted(logits.glob("*.npy"))))
    np.save(name, np.load(name) + 1)
    with pytest.raises(UserError, match=rf"of another run \(teacher logits {fingerprint} there"):
        losses_of(config, tmp_path / "again")
    config.terms.cwd.teacher = "stage4"
    with pytest.raises(UserError, match=r'cwd\.teacher: the teacher has no map "stage4"; it has'):
        losses_of(config, tmp_path / "again")


@pytest.mark.thorough
def test_a_comparison_takes_logits_from_elsewhere(config, logits, tmp_path):
    config.update({"steps": 1, "eval_every": 1})
    config.teacher.checkpoint, config.teacher.logits = "", str(logits)
    config.teacher.cache_classes = 2
    config.compare.equal_time = False
    with config.unlocked():
        config.terms = ConfigDict()
        config.compare.methods = ConfigDict(
            {"plain": {}, "cwd": {"cwd": configuration.term("cwd")}}
        )
        config.compare.seeds = (0,)
    compared = compare(config, tmp_path / "compared")
    assert {row["method"] for row in compared.table} == {"plain student", "cwd"}
    assert not compared.students["plain student"].files.read_options().teacher.logits
    assert "teacher precomputed logits" in compared.report.read_text()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"4": None},
            r"4\.npy \(or \.safetensors\) is missing: config\.teacher\.logits",
        ),
        (
            {"4": (CLASSES, 6, 8)},
            r"4\.npy is \[4, 6, 8\], with the classes first; .*moveaxis",
        ),
        ({"4": (8, 6, CLASSES)}, r"4\.npy has 8 x 6 cells, but its image has 20 x 40 pixels"),
        ({"4": (6, 8, 5)}, r"4\.npy is float32 \[6, 8, 5\]; it must be .* \[h, w, 4\]"),
        ({"4": (1, 6, 8, CLASSES)}, r"4\.npy is float32 \[1, 6, 8, 4\]; it must be"),
        (
            {"4": np.zeros((6, 8, CLASSES), int)},
            r"4\.npy is int64 \[6, 8, 4\]; it must be",
        ),
        ({"4": b"nothing"}, r"4\.npy cannot be read: "),
        ({"3": (6, 8, CLASSES)}, r"3\.npy and 3\.safetensors are both there; remove one"),
        ({"classes.txt": None}, r"classes\.txt cannot be read \(No such file.*a line each"),
        (
            {"classes.txt": "class_0\nclass_2\n"},
            r"other classes .*class 1 is \"class_2\" there and \"class_1\"",
        ),
        ({"4": np.full((5, 10, CLASSES), np.nan, "f")}, r"4\.npy holds values that are not finite"),
        ({"4": np.full((5, 10, CLASSES), 1e300)}, r"4\.npy holds .* not finite numbers in float32"),
    ],
)
def test_logits_that_do_not_fit_are_named(config, logits, changes, message):
    for name, value in changes.items():
        path = logits / (name if "." in name else f"{name}.npy")
        if value is None:
            path.unlink()
        elif isinstance(value, str):
            path.write_text(value)
        elif isinstance(value, bytes):
            path.write_bytes(value)
        else:
            np.save(path, np.zeros(value, "f") if isinstance(value, tuple) else value)
    with pytest.raises(UserError, match=message):
        read_all(logits, config)


def read_all(logits, config):
    """Reads the files of all images."""
    files = PrecomputedLogits(str(logits), RunData(config.data), 0)
    return list(files.maps(files.compressions(), np.zeros(9, bool)))


def test_a_byte_order_mark_is_no_part_of_a_class_of_logits(config, logits):
    path = logits / "classes.txt"
    path.write_text(path.read_text(), encoding="utf-8-sig")
    assert PrecomputedLogits(str(logits), RunData(config.data), 0).num_classes == CLASSES


def test_what_logits_do_not_go_with(config, tmp_path):
    config.teacher.logits = str(tmp_path / "logits")
    with pytest.raises(UserError, match=r"logits and config\.teacher\.checkpoint are both set"):
        configuration.read(config)
    config.teacher.checkpoint = ""
    with pytest.raises(UserError, match=r"teacher\.logits: .*classes\.txt cannot be read"):
        losses_of(config, tmp_path / "run")
    config.teacher.min_miou = 0.5
    with pytest.raises(UserError, match=r"min_miou cannot be asked of config\.teacher\.logits"):
        configuration.read(config)
    config.teacher.update({"min_miou": 0.0, "cache": ""})
    with pytest.raises(UserError, match=r"teacher\.logits is set: name the directory"):
        configuration.read(config)
