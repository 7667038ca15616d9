"""Tests plans for GPUs: the collectives of a captured program, and a small compiled step."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

from kdjax.planning import topology
from kdjax.planning.collectives import Collective, read_collectives
from kdjax.utils.errors import UserError

ROOT = pathlib.Path(__file__).resolve().parents[2]
HOSTS = [0] * 8 + [1] * 8
# XLA's text for two hosts with eight H100 each: a loop with a chain of five products, their
# gradient, and an update, over a mesh of host 2, a 2, and b 4. Without metadata.
CAPTURED = (pathlib.Path(__file__).parent / "h100_2x8.hlo").read_text()


def test_the_collectives_of_a_captured_program():
    found = {x.kind: x for x in read_collectives(CAPTURED, HOSTS)}
    # Each iteration sums products of 64 x 64 float32 over b, whose 4 devices share a host.
    assert found["reduce-scatter"] == Collective("reduce-scatter", 5, 5 * 16384, 5 * 0.75 * 16384)
    assert found["all-gather"] == Collective("all-gather", 6, 6 * 16384, 6 * 0.75 * 16384)
    # The gradient of 16 x 64 over host and a: 2 devices of a host, then half to the other host.
    assert found["all-reduce"] == Collective("all-reduce", 1, 4096, 4096.0, 2048.0)


# The text of an instruction, and the expected result for 16 devices on 2 hosts.
FORMS = [
    (
        "((f32[4], f32[8]), (f32[32], f32[64])) all-gather-start(%a, %b), "
        "replica_groups=mesh['axis_0'=2,'axis_1'=8] {'axis_1'}, dimensions={0}",
        Collective("all-gather", 1, 384, 7 / 8 * 384),
    ),
    (
        "((f32[64]), f32[32]) reduce-scatter-start(%a), "
        "replica_groups=mesh['axis_0'=2,'axis_1'=8] {'axis_0'}, dimensions={0}",
        Collective("reduce-scatter", 1, 256, 0.0, 128.0),
    ),
    (
        # Numbered across the hosts: neighbors along the axis are 8 apart.
        "((f32[4]), (f32[8])) all-gather-start(%a), replica_groups=mesh['axis_0'=8,'axis_1'=2], "
        "device_ids=([2,8]T(1,0)) {'axis_1'}, dimensions={0}",
        Collective("all-gather", 1, 32, 0.0, 16.0),
    ),
    (
        # Groups along the factor of size 4 of an axis of size 16: 0, 2, 4, 6.
        "f32[8] all-reduce-start(%a), replica_groups=mesh['axis_0'=16] {'axis_0':(2)4}, "
        "to_apply=%add",
        Collective("all-reduce", 1, 32, 48.0),
    ),
    (
        "f32[8] all-reduce(%a), replica_groups=[2,8]<=[8,2]T(1,0), to_apply=%add",
        Collective("all-reduce", 1, 32, 48.0, 8.0),
    ),
    (
        "((f32[4], bf16[4]), (f32[4], bf16[4])) collective-permute-start(%a, %b), "
        "source_target_pairs={{0,8},{8,0}}",
        Collective("collective-permute", 1, 24, 24.0, 24.0),
    ),
    (
        "f32[64] all-to-all(%a), replica_groups={}, dimensions={0}",
        Collective("all-to-all", 1, 256, 7 / 16 * 256, 8 / 16 * 256),
    ),
]


@pytest.mark.parametrize(("form", "expected"), FORMS)
def test_collectives_as_they_are_written_for_gpus(form, expected):
    text = f"HloModule f\n\nENTRY %main (a: f32[4]) -> f32[4] {{\n  %x = {form}\n}}\n"
    assert read_collectives(text, HOSTS) == [expected]


@pytest.mark.parametrize("name", ["h100", "h100:3", "h100:16", "a100:2x8x1", "h200:0x8"])
def test_what_no_hosts_make_up_is_a_mistake(name):
    with pytest.raises(UserError, match=r"h100:8.*h100:2x8"):
        topology.find_topology(name)


def test_without_the_compiler_the_extra_is_named(monkeypatch):
    monkeypatch.setattr(topology.importlib.metadata, "distributions", lambda: iter(()))
    with pytest.raises(UserError, match=r"pip install 'kdjax\[cuda-plan\]'"):
        topology.find_topology("h100:8")


@pytest.mark.cuda_plan
def test_a_step_is_compiled_for_two_hosts_of_gpus(tmp_path):
    names = {x.metadata["Name"] for x in topology.importlib.metadata.distributions()}
    if "jax-cuda12-plugin" not in names:
        pytest.skip("compiling for GPUs needs jax-cuda12-plugin: kdjax[cuda-plan]")
    config = tmp_path / "tiny_config.py"
    config.write_text(
        "from kdjax import config as configuration\n"
        "from kdjax.config import network\n\n\n"
        "def get_config():\n"
        "    config = configuration.default()\n"
        "    config.data.crop_size, config.data.batch_size = (32, 32), 4\n"
        '    config.student.update(network("tiny:create", width=8))\n'
        "    return config\n"
    )
    output = tmp_path / "plan.json"
    words = ["--topology=h100:2x2", "--num_classes=5", f"--config={config}", f"--json={output}"]
    paths = [str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")]
    run = subprocess.run(
        [sys.executable, "-m", "kdjax", "plan", *words],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=300,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
    )
    assert run.returncode == 0, run.stderr
    plan = json.loads(output.read_text())
    assert (plan["devices"], plan["chip"]["name"]) == (4, "H100 SXM")
    assert plan["memory"]["activations and temporaries"] > 0
    (reduced,) = plan["collectives"]
    assert reduced["network_bytes"] == reduced["bytes"] / 2 > plan["memory"]["parameters"] / 2
    assert plan["seconds"]["network"] > plan["seconds"]["interconnect"] > 0
    assert "JAX takes 75 %" in run.stdout
