"""A plan as a table for people and as JSON for programs."""

import dataclasses
from typing import Any

from kdjax.config import Config
from kdjax.environment import versions
from kdjax.planning.chips import GIB, Topology
from kdjax.planning.estimate import Plan

_NOT_COUNTED = (
    "{:.0f} % by default. Not counted: workspaces of cuDNN and cuBLAS, which come out of it, and "
    "CUDA's context and NCCL's buffers, which come out of the rest"
)
_REMARKS = {
    "XLA": "bodies of loops once; what caches keep counts too",
    "kdjax": "operands and results of each operation; what caches keep counts too",
}


@dataclasses.dataclass(frozen=True)
class Largest:
    """The largest batch that fits.

    Attributes:
      plan: of that batch; None where not even one image a device fits.
      compiled: how many programs were compiled to find it, that of the config's batch among them.
    """

    plan: Plan | None
    compiled: int


def as_text(
    config: Config, topology: Topology, plan: Plan, price: float | None, largest: Largest | None
) -> str:
    """The plan in aligned columns, a heading over each part."""
    sections = {
        _title(config, topology, plan): _setup(config, topology, plan),
        "Memory of a device": _memory(topology, plan),
        "Work of a step": _work(topology, plan),
        "Collectives of a step, on each device": _collectives(plan),
        "Time of a step, at the chip's peak": _time(topology, plan, price),
        "Planned beside measured": _measured(plan),
    }
    if largest:
        sections["Largest batch that fits"] = _largest(topology, largest)
    return "\n\n".join(
        "\n".join([title, *_aligned(rows)]) for title, rows in sections.items() if rows
    )


def as_json(
    config: Config, topology: Topology, plan: Plan, price: float | None, largest: Largest | None
) -> dict[str, Any]:
    """The same, and what it was made with. Bytes, seconds, and operations."""
    chip, devices = topology.chip, len(topology.devices)
    found: dict[str, Any] = {
        "config": {
            "student": config.student.to_dict(),
            "teacher": config.teacher.to_dict() if plan.work.teacher else None,
            "terms": config.terms.to_dict(),
            "crop_size": list(config.data.crop_size),
        },
        "topology": topology.name,
        "devices": devices,
        "chip": dataclasses.asdict(chip) if chip else topology.devices[0].device_kind,
        "send_bandwidth": topology.send_bandwidth,
        **_plan_json(topology, plan),
        "versions": versions("jax", "flax", "optax", "libtpu", "jax-cuda12-plugin"),
    }
    if price is not None:
        found["price_per_chip_hour"] = price
        found["cost_per_1000_steps"] = plan.cost(price, devices)
    if largest:
        best = largest.plan and _plan_json(topology, largest.plan)
        found["largest_batch"] = {"compiled": largest.compiled, "plan": best}
    return found


def _plan_json(topology: Topology, plan: Plan) -> dict[str, Any]:
    found = dataclasses.asdict(plan) | {
        "needed": plan.needed,
        "fits": plan.fits(topology.chip),
        "images_per_second": plan.images_per_second(),
    }
    if plan.roofline:
        found["roofline"] |= {"step": plan.roofline.step, "limit": plan.roofline.limit}
    return found


def _title(config: Config, topology: Topology, plan: Plan) -> str:
    student, teacher = config.student.name, config.teacher.name or config.teacher.checkpoint
    pair = f"{teacher} teaches {student}" if plan.work.teacher else student
    terms = (
        f" by {', '.join(entry.loss for entry in config.terms.values())}" if config.terms else ""
    )
    return f"{pair}{terms}, {topology.name}"


def _setup(config: Config, topology: Topology, plan: Plan) -> list[tuple[str, str]]:
    devices = len(topology.devices)
    kind = topology.chip.name if topology.chip else topology.devices[0].device_kind
    height, width = config.data.crop_size
    computed = [("student computes in", config.student.dtype)]
    if plan.work.teacher:
        computed = [("teacher computes in", config.teacher.dtype), *computed]
    return [
        *computed,
        ("devices", f"{devices} x {kind}"),
        ("batch", f"{plan.batch_size} images of {height} x {width}"),
        ("images a device", f"{plan.batch_size // devices}"),
    ]


def _memory(topology: Topology, plan: Plan) -> list[tuple[str, str]]:
    rows = [(kind, _bytes(size)) for kind, size in plan.memory.items() if size]
    if plan.refusal:
        return [*rows, ("the compiler refuses", plan.refusal)]
    rows.append(("together", _bytes(plan.needed)))
    if topology.chip:
        chip = topology.chip
        verdict = "fits" if plan.fits(chip) else "does not fit"
        rows.append(("the chip has", _bytes(chip.memory)))
        if chip.usable < 1:
            rows.append(("JAX takes (+)", _bytes(chip.usable_memory)))
        rows.append((verdict, f"{100 * plan.needed / chip.usable_memory:.0f} %"))
        if chip.usable < 1:
            rows.append(("(+)", _NOT_COUNTED.format(100 * chip.usable)))
    return rows


def _work(topology: Topology, plan: Plan) -> list[tuple[str, str]]:
    rows = [("student, forward", _work_of(plan.work.student))]
    if plan.work.teacher:
        rows = [("teacher, forward", _work_of(plan.work.teacher)), *rows]
    rows.append(("everything", _work_of(plan.work.step)))
    rows.append(("everything, on a device", _work_of(plan.work.step / len(topology.devices))))
    if plan.refusal:
        return rows
    if plan.compiler_flops is not None:
        rows.append(("by XLA's count, bodies of loops once", _work_of(plan.compiler_flops)))
    if plan.bytes_moved is None:
        return [*rows, ("memory traffic of a device", "unknown")]
    rows.append((f"memory traffic of a device, by {plan.counted_by} (*)", _bytes(plan.bytes_moved)))
    return [*rows, ("(*)", _REMARKS[plan.counted_by])]


def _collectives(plan: Plan) -> list[tuple[str, str]]:
    if plan.refusal:
        return []
    rows = []
    for found in plan.collectives:
        sent = f"{found.count} x, {_bytes(found.bytes)}, sends {_bytes(found.sent_bytes)}"
        if found.network_bytes:
            sent += f", to other hosts {_bytes(found.network_bytes)}"
        rows.append((found.kind, sent))
    return rows or [("none", "")]


def _time(topology: Topology, plan: Plan, price: float | None) -> list[tuple[str, str]]:
    roofline, devices = plan.roofline, len(topology.devices)
    if roofline is None:
        return []
    times = dataclasses.asdict(roofline)
    if not roofline.network:
        del times["network"]
    rows = [(name, "unknown" if time is None else _ms(time)) for name, time in times.items()]
    rows.append(("step", f"{_ms(roofline.step)}, limited by {roofline.limit}"))
    rows.append(("images/s", f"{plan.images_per_second():,.0f}"))
    if price is not None:
        cost = plan.cost(price, devices)
        rows.append(("cost of 1,000 steps", f"{cost:.2f} at {price:g} a chip and hour"))
    return rows


def _measured(plan: Plan) -> list[tuple[str, str]]:
    if plan.measured is None:
        return []
    low, middle, high = plan.measured.quartiles
    took = f"{_ms(middle)} ({_ms(low)} to {_ms(high)}, {len(plan.measured.seconds)} steps)"
    peak, time, share = plan.measured.peak, "unknown", ""
    if plan.roofline:
        time = _ms(plan.roofline.step)
        share = f", {middle / plan.roofline.step:.2f} times as long"
    memory = "the back end does not tell"
    if peak is not None:
        memory = f"{_bytes(peak)}, {peak / plan.needed:.2f} times as much"
    return [
        ("step, planned", time),
        ("step, measured", took + share),
        ("images/s, measured", f"{plan.batch_size / middle:,.1f}"),
        ("work done", f"{_work_of(plan.work.step / middle)}/s"),
        ("memory of a device, planned", _bytes(plan.needed)),
        ("peak of a device, measured", memory),
    ]


def _largest(topology: Topology, largest: Largest) -> list[tuple[str, str]]:
    compiled = ("programs compiled", str(largest.compiled))
    if largest.plan is None:
        return [("images", "not even one a device"), compiled]
    devices = len(topology.devices)
    size = largest.plan.batch_size
    return [
        ("images", f"{size}, {size // devices} a device"),
        ("memory of a device", _bytes(largest.plan.needed)),
        ("images/s", f"{largest.plan.images_per_second() or 0:,.0f}"),
        compiled,
    ]


def _aligned(rows: list[tuple[str, str]]) -> list[str]:
    width = max(len(name) for name, _ in rows)
    return [f"  {name.ljust(width)}  {value}".rstrip() for name, value in rows]


def _bytes(size: float) -> str:
    for unit, name in ((GIB, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if size >= unit:
            return f"{size / unit:,.2f} {name}"
    return f"{size:.0f} B"


def _work_of(operations: float) -> str:
    unit, name = (1e12, "TFLOP") if operations >= 1e11 else (1e9, "GFLOP")
    return f"{operations / unit:,.3f} {name}"


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:,.2f} ms"
