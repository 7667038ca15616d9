"""Plans: counts in small known programs, and a whole plan on several CPU devices."""

import dataclasses
import importlib.metadata
import json
import re
from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import warm
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from kdjax import config as configuration
from kdjax.config import network, term
from kdjax.data.preparing.classes import known_classes
from kdjax.planning import chips, formatting, plan, topology
from kdjax.planning.collectives import Collective, read_collectives
from kdjax.planning.plan import make_plan
from kdjax.planning.program import make_program
from kdjax.planning.topology import Topology
from kdjax.training import profiling
from kdjax.utils.errors import UserError


def shape(*sides):
    return jax.ShapeDtypeStruct(sides, jnp.float32)


def compiled_flops(function, *arguments):
    costs = jax.jit(function).lower(*arguments).compile().cost_analysis()
    assert costs is not None
    return costs["flops"]


CONVOLUTIONS = {
    "plain": {"window_strides": (1, 1), "padding": "SAME"},
    "strided": {"window_strides": (2, 2), "padding": "SAME"},
    "dilated": {"window_strides": (1, 1), "padding": ((4, 4), (4, 4)), "rhs_dilation": (4, 4)},
    "grouped": {"window_strides": (1, 1), "padding": "VALID", "feature_group_count": 4},
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolutions_and_their_gradients_count_as_xla_counts_them(name):
    options = CONVOLUTIONS[name]
    groups = options.get("feature_group_count", 1)
    convolve = partial(
        jax.lax.conv_general_dilated, dimension_numbers=("NHWC", "HWIO", "NHWC"), **options
    )
    arguments = shape(2, 16, 12, 8), shape(3, 3, 8 // groups, 16)
    assert profiling.count_flops(convolve, *arguments) == compiled_flops(convolve, *arguments)

    # The gradient costs as much again for each argument.
    def gradient(x, kernel):
        return jax.grad(lambda x, k: convolve(x, k).sum(), argnums=(0, 1))(x, kernel)

    assert profiling.count_flops(gradient, *arguments) == 2 * profiling.count_flops(
        convolve, *arguments
    )


def test_products_in_loops_count_in_every_round():
    def looped(x, w):
        return jax.lax.scan(lambda x, _: (jnp.tanh(x @ w), None), x, length=7)[0]

    assert profiling.count_flops(looped, shape(4, 8), shape(8, 8)) == 7 * 2 * 4 * 8 * 8
    # XLA's own count has the loop once.
    assert compiled_flops(looped, shape(4, 8), shape(8, 8)) < 2 * 2 * 4 * 8 * 8


def test_what_nothing_needs_does_not_count():
    def lazy(x):
        jnp.dot(x, x)
        return x @ x.T

    assert profiling.count_flops(lazy, shape(4, 4)) == 2 * 4**3


def compile_sharded(function, *shardings):
    mesh = jax.make_mesh((2, 4), ("a", "b"), (AxisType.Auto,) * 2)
    arguments = [
        jax.ShapeDtypeStruct((16, 64), jnp.float32, sharding=NamedSharding(mesh, spec))
        for spec in shardings
    ]
    wrapped = jax.shard_map(
        function, mesh=mesh, in_specs=tuple(shardings), out_specs=PartitionSpec(), check_vma=False
    )
    return jax.jit(wrapped).lower(*arguments).compile().as_text()


SMALL = {
    # On [8, 16] float32: 512 bytes.
    "all-reduce": (lambda x: jax.lax.psum(x, "b"), 512, 2 * 3 / 4 * 512),
    "all-gather": (lambda x: jax.lax.all_gather(x, "b"), 4 * 512, 3 / 4 * 4 * 512),
    "reduce-scatter": (
        lambda x: jax.lax.psum_scatter(x, "b", tiled=True),
        512,
        3 / 4 * 512,
    ),
    "collective-permute": (
        lambda x: jax.lax.ppermute(x, "b", [(i, (i + 1) % 4) for i in range(4)]),
        512,
        512,
    ),
}


@pytest.mark.parametrize("kind", SMALL)
def test_each_kind_of_collective_is_read_with_its_bytes(kind):
    function, size, sent = SMALL[kind]
    (found,) = read_collectives(compile_sharded(function, PartitionSpec("a", "b")))
    assert found == Collective(kind, 1, size, sent)


def test_collectives_in_a_loop_count_in_every_round():
    def looped(x):
        return jax.lax.scan(lambda x, _: (jax.lax.psum(jnp.tanh(x), "b"), None), x, length=5)[0]

    (found,) = read_collectives(compile_sharded(looped, PartitionSpec("a", "b")))
    assert (found.kind, found.count, found.bytes) == ("all-reduce", 5, 5 * 512)


# In libtpu's form: tiles in the layouts, starts and ends, and no iteration counts of loops.
ASYNCHRONOUS = """
HloModule jit_f, is_scheduled=true, num_partitions=8

%add (x: f32[], y: f32[]) -> f32[] {
  ROOT %add.1 = f32[]{:T(128)} add(%x, %y)
}

%condition (p: (s32[], bf16[16,8])) -> pred[] {
  %constant.1 = s32[]{:T(128)} constant(6)
  ROOT %less = pred[]{:T(512)} compare(%i, %constant.1), direction=LT
}

%body (p: (s32[], bf16[16,8])) -> (s32[], bf16[16,8]) {
  %ag = (bf16[2,8]{1,0}, bf16[16,8]{1,0:T(8,128)S(1)}) all-gather-start(%x), \
replica_groups=[1,8]<=[8]
  %all-gather-done = bf16[16,8]{1,0:T(8,128)(2,1)S(1)} all-gather-done(%ag)
}

ENTRY %main (a: f32[4]) -> f32[4] {
  %while.1 = (s32[]{:T(128)}, bf16[16,8]{1,0}) while(%tuple.1), condition=%condition, body=%body
  %ar = (f32[100]{0}, f32[20]{0:T(128)}) all-reduce-start(%a, %b), \
replica_groups={{0,1},{2,3},{4,5},{6,7}}
  ROOT %all-reduce-done = (f32[100]{0:T(128)}, f32[20]{0:T(128)}) all-reduce-done(%ar)
}
"""


def test_asynchronous_collectives_count_once_a_start():
    reduced, gathered = read_collectives(ASYNCHRONOUS)
    assert reduced == Collective("all-reduce", 1, 480, 480.0)
    assert gathered == Collective("all-gather", 6, 6 * 256, 6 * 7 / 8 * 256)


@pytest.mark.parametrize("start", [1, 3, 8, 40])
def test_search_finds_the_largest_whatever_it_starts_from(start):
    for limit in range(20):
        asked = []

        def fits(n, asked=asked, limit=limit):
            asked.append(n)
            return n <= limit

        assert plan.largest_count(fits, start) == limit
        assert len(asked) == len(set(asked)) <= 12


def test_a_corner_sends_over_a_link_a_side_and_two_where_rings_close():
    v5e, v5p = chips.TPUS["v5e"], chips.TPUS["v5p"]
    assert [topology.links_of(v5e, shape) for shape in ("1x1", "2x2", "4x4", "8x16", "16x16")] == [
        *(0, 2, 2, 3, 4)
    ]
    assert [topology.links_of(v5p, shape) for shape in ("2x2x1", "2x4x4", "4x4x8")] == [2, 3, 6]


@pytest.mark.parametrize("chip", chips.CHIPS, ids=lambda chip: chip.name)
def test_every_chip_names_its_sources(chip):
    assert chip.sources
    assert all(source.startswith("https://") for source in chip.sources)
    assert set(chip.flops) == {"bfloat16", "float32"}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("v5f:2x2", r"a TPU \(v4, v5e, v5p, v6e\) and a shape.* a GPU \(a100, h100, h200\)"),
        ("v5e", "a TPU .* and a shape, as v5e:4x4.*; v5e comes as 1x1"),
        ("v5e:3x3", "v5e comes as 1x1, 2x2, 2x4"),
    ],
)
def test_an_unknown_topology_names_those_that_there_are(name, message):
    with pytest.raises(UserError, match=message):
        topology.find_topology(name)


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (None, r"needs its compiler, libtpu: pip install 'kdjax\[tpu\]'"),
        ("0.0.52", r"libtpu 0\.0\.52 is installed, .* libtpu 0\.0\.42\.\*: .*kdjax\[tpu\]"),
        ("0.0.420.1", r"libtpu 0\.0\.420\.1 is installed"),
        ("0.0.42", None),
        ("0.0.42.1", None),
    ],
)
def test_only_the_libtpu_that_jax_names_is_used(monkeypatch, found, message):
    def version(name):
        if found is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return found

    monkeypatch.setattr(topology, "_NO_MACHINE", {})
    named = ["scipy>=1.14", 'libtpu==0.0.42.*; extra == "tpu"']
    monkeypatch.setattr(importlib.metadata, "version", version)
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: named)
    monkeypatch.setattr(
        topology.topologies, "get_topology_desc", lambda *_, **__: SimpleNamespace(devices=[1, 2])
    )
    if message is None:
        assert topology.find_topology("v5e:2x2").devices == [1, 2]
    else:
        with pytest.raises(UserError, match=message):
            topology.find_topology("v5e:2x2")


def test_jax_names_its_libtpu():
    assert re.fullmatch(r"[\d.]+(\.\*)?", topology._libtpu_of_jax())


def test_known_sets_have_their_classes():
    counts = {"cityscapes": 19, "voc2012": 21, "ade20k": 150, "camvid": 11, "coco_stuff": 171}
    counts["pascal_context"] = 59
    assert {name: known_classes(name) for name in counts} == counts
    with pytest.raises(UserError, match=r"folder.*--num_classes"):
        known_classes("folder")


def make_config(**terms):
    config = configuration.default()
    config.data.crop_size = (32, 48)
    config.data.batch_size = 16
    config.optimizer.ema_decay = 0.9
    config.student.update(network("tiny", width=8))
    config.teacher.update(network("tiny", width=16))
    with config.unlocked():
        config.terms.update(terms)
    return config


CHIP = chips.Chip(
    name="toy",
    kinds=("toy",),
    flops={"float32": 1e9, "bfloat16": 2e9},
    memory=64e6,
    link_bandwidth=1e7,
    links=2,
    sources=("https://example.org",),
)


@pytest.fixture(scope="module")
def planned():
    config = make_config(cwd=term("cwd"), nfd=term("nfd", student="head", teacher="head"))
    toy = Topology("toy:8", jax.devices(), CHIP, 2)
    return config, toy, make_plan(config, toy, num_classes=5, batch_size=16, measure=True)


def test_a_plan_holds_what_training_holds(planned):
    config, toy, plan = planned
    program = make_program(config, toy.devices, num_classes=5, batch_size=16)
    state = program.state
    parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    # These include the head's adapter. Momentum is as large, and so is the average.
    assert set(state.params["terms"]) == {"nfd"}
    assert plan.memory["parameters"] == 4 * parameters
    assert plan.memory["optimizer"] == 4 * parameters + 4  # and a step count
    assert plan.memory["batch"] == 2 * 32 * 48 * 4
    assert plan.memory["teacher"] > plan.memory["parameters"]
    assert plan.memory["state of terms"] == 0
    assert plan.memory["activations and temporaries"] > 2 * 32 * 48 * 4
    assert plan.fits(CHIP)


def test_the_work_of_a_step_is_that_of_its_parts(planned):
    work = planned[2].work
    # The student's forward pass, and about twice as much for the backward pass.
    assert work.step - work.teacher > 2.5 * work.student


def test_gradients_and_batch_statistics_are_reduced_over_the_devices(planned):
    plan = planned[2]
    (reduced,) = [found for found in plan.collectives if found.kind == "all-reduce"]
    assert reduced.bytes >= plan.memory["parameters"]
    assert reduced.sent_bytes == pytest.approx(2 * 7 / 8 * reduced.bytes)


def test_the_bound_is_the_slowest_resource(planned):
    _, _, plan = planned
    sent = sum(found.sent_bytes for found in plan.collectives)
    assert plan.seconds == pytest.approx(
        {"compute": plan.work.step / 8 / 1e9, "interconnect": sent / 2e7}
    )
    assert plan.bound == max(plan.seconds.values()) == plan.seconds[plan.limit]


def test_a_plan_is_printed_and_written(planned):
    config, toy, plan = planned
    text = formatting.as_text(config, toy, plan)
    for part in ("tiny teaches tiny by cwd, nfd, toy:8", "limited by", "teacher, forward", "fits"):
        assert part in text
    found = json.loads(json.dumps(formatting.as_json(configuration.read(config), toy, plan)))
    assert found["needed"] == sum(found["memory"].values())
    assert found["limit"] == plan.limit
    assert found["versions"]["jax"] == jax.__version__


def test_a_step_that_was_run_stands_beside_its_plan(planned):
    config, toy, plan = planned
    middle = np.median(plan.measured_seconds)
    assert 3 <= len(plan.measured_seconds) <= 20
    text = formatting.as_text(config, toy, plan)
    assert f"{middle / plan.bound:.2f} times the bound" in text
    assert "not reported by this back end" in text
    with_peak = dataclasses.replace(plan, measured_peak=3 * plan.needed)
    assert ", 3.00 times the plan" in formatting.as_text(config, toy, with_peak)


def test_the_search_starts_from_the_batch_of_the_config(planned, monkeypatch):
    config, toy, first = planned
    asked = []

    def made(config, topology, *, num_classes, batch_size):
        asked.append(batch_size)
        memory = {"all": batch_size * 1_000_000}
        return dataclasses.replace(first, batch_size=batch_size, memory=memory)

    monkeypatch.setattr(plan, "make_plan", made)
    largest = plan.largest_plan(config, toy, first, num_classes=5)
    assert (largest.batch_size, asked) == (64, [32, 64, 128, 96, 80, 72])
    # A mesh that splits images by rows also allows less than one image per device.
    less = dataclasses.replace(first, batch_size=4)
    assert plan.largest_plan(config, toy, less, num_classes=5).batch_size == 64
    small = dataclasses.replace(toy, chip=dataclasses.replace(CHIP, memory=1e6))
    assert plan.largest_plan(config, small, less, num_classes=5) is None


def test_a_teacher_in_bfloat16_is_planned_as_a_run_stores_it(planned):
    config, toy, plan = planned
    config = config.copy_and_resolve_references()
    assert "teacher computes in  float32\n" in formatting.as_text(config, toy, plan)
    config.teacher.dtype = "bfloat16"
    program = make_program(config, toy.devices, num_classes=5, batch_size=16)
    assert program.resident_bytes()["teacher"] < 0.55 * plan.memory["teacher"]
    state, frozen, batch = program.values()
    _, metrics = jax.jit(program.step)(state, frozen, batch)
    assert float(metrics["cwd"]) > 0
    text = formatting.as_text(config, toy, plan)
    assert "teacher computes in  bfloat16\n" in text
    assert "student computes in  float32\n" in text


def test_a_batch_that_cannot_be_split_is_a_mistake():
    with pytest.raises(UserError, match="batch_size is 12; it must be a multiple of the 8 devices"):
        make_program(make_config(), jax.devices(), num_classes=5, batch_size=12)


def test_a_teacher_must_be_named():
    config = make_config(cwd=term("cwd"))
    config.teacher.name = ""
    with pytest.raises(UserError, match=r"config\.teacher\.name"):
        make_program(config, jax.devices(), num_classes=5, batch_size=8)


def test_a_cache_of_the_teacher_cannot_be_planned():
    config = make_config(cwd=term("cwd"))
    config.teacher.cache = "scores"
    with pytest.raises(UserError, match=r"config\.teacher\.cache: the size of its maps depends on"):
        make_program(config, jax.devices(), num_classes=5, batch_size=8)


def plan_command(*flags):
    return warm.run("-m", "kdjax", "plan", "--config=configs/camvid_pspnet_r18.py", *flags)


def test_the_command_says_what_is_missing(tmp_path):
    run = plan_command("--topology=v9:2x2", f"--json={tmp_path / 'plan.json'}")
    assert run.returncode == 2
    (line,) = run.stderr.splitlines()
    assert line.startswith('kdjax plan: error: --topology is "v9:2x2": give local; a TPU')
    run = plan_command("--topology=local", f"--json={tmp_path}")
    assert run.stderr == f"kdjax plan: error: --json {tmp_path} is a folder; name a file\n"
    run = plan_command("--topology=local", "--json=/dev/null")
    assert run.stderr == "kdjax plan: error: --json /dev/null is no regular file; name a file\n"
    run = plan_command("--topology=local", f"--json={tmp_path / (250 * 'n')}")
    assert run.stderr.endswith("n cannot be written: File name too long\n")
    assert "Compiling" not in run.stdout
    run = plan_command("--topology=v5e:2x2", "--measure")
    assert run.stderr.endswith("--measure runs on this machine: --topology local, not v5e:2x2\n")
    assert not [*tmp_path.iterdir()]


@pytest.mark.tpu
def test_a_slice_of_tpus_is_compiled_for():
    pytest.importorskip("libtpu", reason="compiling for TPUs needs libtpu: kdjax[tpu]")
    config = make_config(cwd=term("cwd"))
    found = topology.find_topology("v5e:2x2")
    plan = make_plan(config, found, num_classes=5, batch_size=16)
    assert len(found.devices) == 4
    assert plan.memory["batch"] == 4 * 32 * 48 * 4
    assert plan.memory["activations and temporaries"] > 0
    assert {found.kind for found in plan.collectives} == {"all-reduce"}
    huge = make_plan(config, found, num_classes=5, batch_size=4_000_000)
    assert not huge.fits(found.chip)
    assert "memory" in huge.refusal
    assert plan.bound == max(plan.seconds["compute"], plan.seconds["interconnect"]) > 0
