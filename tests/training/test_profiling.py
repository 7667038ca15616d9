"""Tests `--profile`: the traced steps, and errors for wrong steps."""

import jax
import jax.numpy as jnp
import pytest
from test_loop import run_loop

from kdjax.training.profiling import Profile, check_steps, steps_of
from kdjax.utils.errors import UserError


def traces(directory):
    return [*directory.rglob("*.xplane.pb")], [*directory.rglob("perfetto_trace.json.gz")]


@pytest.mark.thorough
def test_the_loop_writes_one_trace_for_tensorboard_and_one_for_perfetto(tmp_path):
    # After the first evaluation, because tracing its compilation takes several seconds.
    run_loop(tmp_path / "checkpoints", profile=Profile(tmp_path / "profile", 3, 4))
    for found in traces(tmp_path / "profile"):
        assert len(found) == 1
        assert found[0].stat().st_size > 1000


def test_only_the_steps_that_were_asked_for_are_traced(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(jax.profiler, "start_trace", lambda *_, **__: calls.append("start"))
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: calls.append("stop"))
    profile = Profile(tmp_path, 3, 4)
    for step in range(2, 7):
        calls.append(step)
        profile.begin(step)
        profile.end(step, jnp.zeros(()))
    profile.close()
    assert calls == [2, 3, "start", 4, "stop", 5, 6]

    # A run that ends early still writes its trace.
    profile.begin(3)
    profile.close()
    assert calls[-2:] == ["start", "stop"]


@pytest.mark.parametrize("text", ["5", "5:", "a:b", "7:3", "0:2", "3:11"])
def test_a_wrong_pair_of_steps_is_a_mistake(text):
    with pytest.raises(UserError, match="--profile is"):
        check_steps(*steps_of(text), 10)


def test_steps_are_read():
    assert steps_of("3:10") == (3, 10)
    check_steps(3, 10, 10)


def test_a_trace_needs_a_local_workdir():
    with pytest.raises(UserError, match="give a local --workdir"):
        Profile("gs://bucket/run/profile", 1, 2)
