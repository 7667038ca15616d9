"""Formats a plan as aligned text and as JSON."""

import dataclasses
import json
from typing import Any

import numpy as np

from kdjax.config import RunOptions
from kdjax.planning.chips import GIB
from kdjax.planning.plan import Plan
from kdjax.planning.topology import Topology
from kdjax.utils.environment import versions

Rows = list[tuple[str, str]]


def as_text(options: RunOptions, topology: Topology, plan: Plan) -> str:
    """Returns the plan as aligned columns, with a heading for each part."""
    title = options.student.name
    if plan.work.teacher:
        title = f"{options.teacher.name or options.teacher.checkpoint} teaches {title}"
    if options.terms:
        title += f" by {', '.join(options.terms)}"
    sections = {
        f"{title}, {topology.name}": _setup(options, topology, plan),
        "Memory of a device": _memory(topology, plan),
        "Work of a step": _work(topology, plan),
        "Collectives of a step, on each device": _collectives(plan),
        "Least time of a step": _time(plan),
        "Measured": _measured(plan),
    }
    return "\n\n".join(
        "\n".join([heading, *_aligned(rows)]) for heading, rows in sections.items() if rows
    )


def as_json(options: RunOptions, topology: Topology, plan: Plan) -> dict[str, Any]:
    """Returns the plan, its inputs, and the versions. Units are bytes, seconds, and operations."""
    chip = topology.chip
    stored = json.loads(options.stored)
    return {
        "config": {
            "student": stored["student"],
            "teacher": stored["teacher"] if plan.work.teacher else None,
            "terms": stored["terms"],
            "crop_size": list(options.data.crop_size),
        },
        "topology": topology.name,
        "devices": len(topology.devices),
        "chip": dataclasses.asdict(chip) if chip else topology.devices[0].device_kind,
        "send_bandwidth": topology.send_bandwidth,
        **dataclasses.asdict(plan),
        "needed": plan.needed,
        "fits": plan.fits(chip),
        "bound": plan.bound,
        "limit": plan.limit,
        "versions": versions("jax", "flax", "optax", "libtpu", "jax-cuda12-plugin"),
    }


def _setup(options: RunOptions, topology: Topology, plan: Plan) -> Rows:
    devices = len(topology.devices)
    kind = topology.chip.name if topology.chip else topology.devices[0].device_kind
    height, width = options.data.crop_size
    teacher = [("teacher computes in", options.teacher.dtype)] if plan.work.teacher else []
    return [
        *teacher,
        ("student computes in", options.student.dtype),
        ("devices", f"{devices} x {kind}"),
        ("batch", f"{plan.batch_size} images of {height} x {width}"),
        ("images a device", f"{plan.batch_size // devices}"),
    ]


def _memory(topology: Topology, plan: Plan) -> Rows:
    rows = [(kind, as_bytes(size)) for kind, size in plan.memory.items() if size]
    if plan.refusal:
        return [*rows, ("the compiler refuses", plan.refusal)]
    rows.append(("together", as_bytes(plan.needed)))
    if chip := topology.chip:
        rows.append(("the chip has", as_bytes(chip.memory)))
        if chip.usable < 1:
            rows.append((f"JAX takes {100 * chip.usable:.0f} %", as_bytes(chip.usable_memory)))
        verdict = "fits" if plan.fits(chip) else "does not fit"
        rows.append((verdict, f"{100 * plan.needed / chip.usable_memory:.0f} %"))
    return rows


def _work(topology: Topology, plan: Plan) -> Rows:
    work = plan.work
    teacher = [("teacher, forward", _flops(work.teacher))] if work.teacher else []
    return [
        *teacher,
        ("student, forward", _flops(work.student)),
        ("everything", _flops(work.step)),
        ("everything, on a device", _flops(work.step / len(topology.devices))),
    ]


def _collectives(plan: Plan) -> Rows:
    rows = []
    for found in plan.collectives:
        sent = f"{found.count} x, {as_bytes(found.bytes)}, sends {as_bytes(found.sent_bytes)}"
        if found.network_bytes:
            sent += f", to other hosts {as_bytes(found.network_bytes)}"
        rows.append((found.kind, sent))
    return rows or ([] if plan.refusal else [("none", "")])


def _time(plan: Plan) -> Rows:
    if plan.bound is None:
        return []
    return [
        *((name, _ms(seconds)) for name, seconds in plan.seconds.items()),
        ("step, at least", f"{_ms(plan.bound)}, limited by {plan.limit}"),
        ("images/s, at most", f"{plan.batch_size / plan.bound:,.0f}"),
    ]


def _measured(plan: Plan) -> Rows:
    if not plan.measured_seconds:
        return []
    low, middle, high = np.percentile(plan.measured_seconds, [25, 50, 75])
    took = f"{_ms(middle)} ({_ms(low)} to {_ms(high)}, {len(plan.measured_seconds)} steps)"
    if plan.bound:
        took += f", {middle / plan.bound:.2f} times the bound"
    memory = "not reported by this back end"
    if (peak := plan.measured_peak) is not None:
        memory = f"{as_bytes(peak)}, {peak / plan.needed:.2f} times the plan"
    return [
        ("step", took),
        ("images/s", f"{plan.batch_size / middle:,.1f}"),
        ("work done", f"{_flops(plan.work.step / middle)}/s"),
        ("peak memory of a device", memory),
    ]


def _aligned(rows: Rows) -> list[str]:
    width = max(len(name) for name, _ in rows)
    return [f"  {name.ljust(width)}  {value}".rstrip() for name, value in rows]


def as_bytes(size: float) -> str:
    """Returns a number of bytes with a unit."""
    for unit, name in ((GIB, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if size >= unit:
            return f"{size / unit:,.2f} {name}"
    return f"{size:.0f} B"


def _flops(operations: float) -> str:
    unit, name = (1e12, "TFLOP") if operations >= 1e11 else (1e9, "GFLOP")
    return f"{operations / unit:,.3f} {name}"


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:,.2f} ms"
