"""The recipes of published sets: names, sources, and two real steps of training.

A step runs on a copy of its networks with one block a stage and few channels, on made-up images:
compiling the true depth of every recipe would take most of an hour. A method with a pair of
networks is the same program on every set, but for constants, which is checked. One recipe takes
its steps; in CI every method does with every pair.
"""

import functools
import json
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import thorough
from flax import nnx

import kdjax
from kdjax import config as configuration
from kdjax import recipes
from kdjax.config import Config
from kdjax.experiment.build import build_distiller
from kdjax.models import NNXNetwork, create
from kdjax.models.outputs import IMAGENET
from kdjax.recipes import COMPARED, METHODS, PAIRS, TRAININGS, published
from kdjax.training import optimizer as optimizers
from kdjax.training.step import Objective, PreprocessedNetwork, create_state, make_train_step
from kdjax.utils import config_file
from kdjax.utils.errors import UserError
from tools import published_recipes

ROOT = pathlib.Path(__file__).resolve().parents[1]
CLASSES = 3
SIZE = 64


RECIPES = [f"{data},{pair},{method}" for data in TRAININGS for pair in PAIRS for method in COMPARED]
# The sets take turns.
PROGRAMS = [
    pytest.param(
        f"{[*TRAININGS][(row + column) % len(TRAININGS)]},{pair},{method}",
        marks=[] if (row, method) == (0, "cwd") else pytest.mark.thorough,
    )
    for row, pair in enumerate(PAIRS)
    for column, method in enumerate(COMPARED)
]


def get_config(recipe) -> Config:
    return config_file.read(f"published.py:{recipe}")


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_is_what_its_name_says(recipe):
    data, pair, method = recipe.split(",")
    config = get_config(recipe)
    configuration.read(config)
    networks, schedule = PAIRS[pair], TRAININGS[data]
    assert config.data.name == data
    assert config.data.train_split == schedule.train_split
    assert config.student.name == networks.student
    assert config.teacher.name == networks.teacher
    assert config.teacher.checkpoint == f"teachers/{data}_{networks.teacher}"
    assert config.student.width == config.teacher.width == 64
    assert config.student.dtype == config.teacher.dtype == "bfloat16"
    assert config.data.batch_size == schedule.batch_size
    assert {name: term.loss for name, term in config.terms.items()} == {
        name: term["loss"] for name, term in METHODS[method].items()
    }
    assert set(config.compare.methods) == (set(COMPARED) if method == "plain" else set())


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("data", thorough.after(1, [*TRAININGS]))
def test_every_recipe_builds_and_is_stored_as_it_is(data, pair):
    for method in (*METHODS, recipes.TEACHER, "own_losses:METHOD"):
        config = get_config(f"{data},{pair},{method}")
        configuration.read(config)
        again = configuration.from_json(configuration.to_json(config))
        assert configuration.to_json(again) == configuration.to_json(config)


@pytest.mark.parametrize("data", TRAININGS)
@pytest.mark.parametrize("pair", PAIRS)
def test_the_teacher_of_a_pair_is_the_one_that_its_students_look_for(data, pair):
    config = get_config(f"{data},{pair},teacher")
    assert not config.terms
    assert config.student.dtype == "bfloat16"
    assert not config.compare.methods
    assert not config.teacher.checkpoint
    assert config.student.backbone == f"pretrained/{PAIRS[pair].teacher_backbone}"
    student = get_config(f"{data},{pair},cwd")
    assert student.teacher.checkpoint == f"teachers/{data}_{config.student.name}"
    assert student.teacher.name == config.student.name
    for shared in ("data", "optimizer", "loss"):
        assert config[shared].to_json_best_effort() == student[shared].to_json_best_effort()


def test_a_teacher_takes_from_its_students_only_what_fits_it():
    config = configuration.default()
    config.student.backbone, config.student.batch_norm = "somewhere", "frozen"
    config.steps, config.compare.teacher_steps, config.optimizer.warmup_steps = 400, 100, 200
    config.teacher.name = "pspnet_r18"
    teacher = recipes.teacher_of(config.copy_and_resolve_references())
    configuration.read(teacher)
    assert (teacher.student.batch_norm, teacher.optimizer.warmup_steps) == ("global", 100)
    config.teacher.backbone, config.compare.teacher_steps = "elsewhere", 300
    teacher = recipes.teacher_of(config.copy_and_resolve_references())
    configuration.read(teacher)
    assert (teacher.student.batch_norm, teacher.optimizer.warmup_steps) == ("frozen", 200)


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        (
            ":citiscapes,pspnet_r101_r18,cwd",
            'no recipe for data set "citiscapes": did you mean "ci',
        ),
        (":coco,pspnet_r101_r18,cwd", 'data set "coco": there are: cityscapes, voc2012, ade20k, '),
        (":ade20k,pspnet_r18,cwd", 'pair of networks "pspnet_r18": did you mean "pspnet_r101_r18"'),
        (":ade20k,pspnet_r101_r18,cwdd", 'no recipe for method "cwdd": did you mean "cwd"?'),
        (":ade20k,pspnet_r101_r18,techer", 'no recipe for method "techer": did you mean "teacher"'),
        (
            ":ade20k,pspnet_r101_r18,a:b",
            'the recipe names the method "a:b": there is no module "a"',
        ),
        (":ade20k,cwd", '"ade20k,cwd" is no recipe; give SET,PAIR,METHOD, as in published.py:cit'),
        (
            ":",
            "no recipe is named; give SET,PAIR,METHOD, as in published.py:cityscapes,pspnet_r101",
        ),
        ("", "no recipe is named; give SET,PAIR,METHOD, as in published.py:cityscapes,pspnet_r101"),
    ],
)
def test_a_recipe_that_there_is_not(argument, said):
    with pytest.raises(UserError, match=rf"published\.py, line \d+: .*{re.escape(said)}") as raised:
        config_file.read(f"published.py{argument}")
    assert "\n" not in str(raised.value)
    if "SET" in said:
        for name in (*TRAININGS, *PAIRS, *METHODS, recipes.TEACHER):
            assert name in str(raised.value)


def test_a_shorter_run_of_segformer_warms_up_for_no_longer_than_that():
    config = get_config("ade20k,segformer_b4_b0,cwd")
    assert config.optimizer.warmup_steps == 1500
    config.steps = 7
    configuration.read(config)
    assert config.optimizer.warmup_steps == 7
    config.optimizer.warmup_steps = 3
    assert (config.steps, config.optimizer.warmup_steps) == (7, 3)


def test_functions_take_a_recipe_by_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for run in (kdjax.train, kdjax.compare):
        with pytest.raises(UserError, match="data set ade20k has not been prepared in"):
            run("published.py:ade20k,pspnet_r101_r18,plain", "run")


def test_weights_are_changed_only_where_they_were_published():
    assert dict(get_config("cityscapes,pspnet_r101_r18,cwd").terms.cwd)["weight"] == 5.0
    assert get_config("ade20k,pspnet_r101_r18,plain").compare.methods.cwd.cwd.weight == 10.0
    # After the others were made, since they start from the same entry.
    assert published("voc2012", "pspnet_r101_r18", "cwd").terms.cwd.temperature == 4.0


def test_the_table_of_recipes_is_that_of_the_code():
    text = published_recipes.PAGE.read_text()
    assert published_recipes.TABLE.findall(text) == [published_recipes.table()]
    backbones = {name for pair in PAIRS.values() for name in pair[2:]}
    assert {*re.findall(r"\bpretrained/(\w+)", text)} == backbones


def test_the_pages_of_the_repository_name_recipes_that_there_are():
    found = []
    for path in (*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "configs").glob("*")):
        if path.suffix in (".md", ".py"):
            found += re.findall(r"published\.py:([a-z]\w*,[\w,]+)", path.read_text())
    for recipe in {*found}:
        configuration.read(get_config(recipe))
    assert len({*found}) >= 3


def test_what_decays_and_learns_faster_in_segformer(shallow):
    """Kernels alone decay, and the head learns ten times faster."""
    config = published("ade20k", "segformer_b4_b0").optimizer
    config.update({"name": "sgd", "schedule": "poly", "momentum": 0.0, "warmup_steps": 0})
    config.update({"learning_rate": 1.0, "weight_decay": 1.0})
    make = functools.partial(create, "segformer_b0", num_classes=CLASSES, width=16)
    shapes = nnx.state(nnx.eval_shape(lambda: make(rngs=nnx.Rngs(0))), nnx.Param)
    params = {"student": jax.tree.map(lambda leaf: np.ones(leaf.shape, leaf.dtype), shapes)}
    optimizer = optimizers.make_optimizer(config, 10)

    @jax.jit
    def update(params):
        zeros = jax.tree.map(jnp.zeros_like, params)
        return optimizer.update(zeros, optimizer.init(params), params)

    updates, _ = update(params)
    found = {
        jax.tree_util.keystr(path[:-1], simple=True, separator="/"): set(np.unique(-leaf))
        for path, leaf in jax.tree_util.tree_leaves_with_path(updates)
    }
    assert found == {
        path: {(10.0 if "/head/" in path else 1.0) if path.endswith("/kernel") else 0.0}
        for path in found
    }


def prepared_step(config):
    """The step of a recipe on narrow networks, and what it starts from."""
    width = 16 if config.student.name.startswith("segformer") else 4
    make = functools.partial(create, num_classes=CLASSES, width=width)
    student = make(config.student.name, auxiliary=config.student.auxiliary, rngs=nnx.Rngs(0))
    teacher = make(config.teacher.name, rngs=nnx.Rngs(1)) if config.terms else None
    network, variables = NNXNetwork.of(student)
    teacher_network = NNXNetwork.of(teacher) if teacher else None
    distiller = build_distiller(config, (network, variables), teacher_network, num_classes=CLASSES)
    optimizer = optimizers.make_optimizer(config.optimizer, config.steps)
    state = create_state(
        variables,
        distiller.init(jax.random.key(0)) if distiller else ({}, {}),
        optimizer,
        ema=False,
    )
    step = make_train_step(
        PreprocessedNetwork(network, IMAGENET),
        PreprocessedNetwork(teacher_network[0], IMAGENET) if teacher_network else None,
        Objective(config.loss.cross_entropy, config.loss.auxiliary, distiller),
        optimizer,
        optimizers.learning_rate_schedule(config.optimizer, config.steps),
        steps=config.steps,
    )
    return step, state, teacher_network and teacher_network[1]


def abstract_step(config):
    """As `prepared_step`, with shapes in place of arrays: initializing takes longer than a step."""
    found = []

    def make():
        step, *states = prepared_step(config)
        found.append(step)
        return states

    states = jax.eval_shape(make)
    return found[0], *states


def filled(shapes):
    """Arrays of these shapes: small random kernels, scales and variances of 1, zeros."""
    generator = np.random.default_rng(0)

    def fill(path, leaf):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if name.startswith(("opt_state", "terms", "step")):
            return np.zeros(leaf.shape, leaf.dtype)
        if "kernel" in name or "adapter" in name:
            return 0.1 * generator.standard_normal(leaf.shape, np.float32)
        one = name.startswith(("params", "model_state", "backbone", "head", "auxiliary_head"))
        one = one and re.search("scale|var", name)
        return np.full(leaf.shape, 1 if one else 0, leaf.dtype)

    return jax.tree_util.tree_map_with_path(fill, shapes)


def batch():
    generator = np.random.default_rng(0)
    label = np.repeat(np.arange(SIZE) * CLASSES // SIZE, SIZE).reshape(SIZE, SIZE)
    label[:2] = 255
    image = label[..., None] % 5 * 50 + generator.integers(0, 50, (2, SIZE, SIZE, 3))
    return {
        "image": jnp.asarray(image, jnp.uint8),
        "label": jnp.asarray(np.stack([label, label.T]), jnp.int32),
    }


@pytest.mark.parametrize("recipe", PROGRAMS)
def test_a_recipe_takes_two_steps(recipe, shallow):
    config = get_config(recipe)
    step, *shapes = abstract_step(config)
    before, teacher_state = map(filled, shapes)
    step, state = jax.jit(step), before
    for number in (1, 2):
        state, metrics = step(state, teacher_state, batch())
        assert all(np.isfinite(value) for value in metrics.values()), metrics
        assert int(state.step) == number
    assert {*config.terms} <= metrics.keys()
    assert ("auxiliary_cross_entropy" in metrics) == (config.loss.auxiliary > 0)
    # Warm-up moves so little that what is 1 stays 1 in float32.
    params = (jax.tree.leaves(jax.device_get(tree.params)) for tree in (before, state))
    moved = [bool(np.any(old != new)) for old, new in zip(*params, strict=True)]
    assert sum(moved) > 0.5 * len(moved)


def structure(config):
    """All of a config that shapes its program: names and options, not numbers or the set's name."""
    named_by_set = ("data.name", "data.train_split", "teacher.checkpoint")
    flat = json.loads(config.to_json_best_effort())

    def walk(path, node):
        if isinstance(node, dict):
            for key, value in node.items():
                yield from walk(f"{path}.{key}".lstrip("."), value)
        elif path not in named_by_set:
            yield path, node if isinstance(node, str | bool) else type(node)

    return dict(walk("", flat))


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("method", COMPARED)
def test_recipes_of_two_sets_differ_in_numbers_alone(pair, method):
    first, *others = [structure(get_config(f"{data},{pair},{method}")) for data in TRAININGS]
    assert others == [first] * len(others)


def test_methods_of_ones_own_are_compared_by_name():
    config = recipes.shapes()
    recipes.compare_methods(config, ["plain", "cwd", "own_losses:METHOD"])
    assert {*config.compare.methods} == {"plain", "cwd", "METHOD"}
    assert config.compare.methods.METHOD.mine.loss == "own_losses:Masked"
    configuration.read(config)
    recipes.teach(config, "own_losses:METHOD", "runs/teacher")
    assert [*config.terms] == ["mine"]
    with pytest.raises(UserError, match='the recipe names the unknown method "cwdd": did you mean'):
        recipes.teach(config, "cwdd", "runs/teacher")
