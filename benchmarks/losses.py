"""Compares every loss with a plain PyTorch version of its formula: time and peak memory.

    python -m benchmarks.losses                          all, about half an hour on one core
    python -m benchmarks.losses --quick                  one small size, as a quick check
    python -m benchmarks.losses --only cwd,pfs           losses whose name contains one of these

Prints a Markdown table. Both sides run in float32 with the same inputs, in turn, after a warm-up.
They run on a GPU if JAX has one, or else on the CPU with the cores of the process (`taskset -c 0`
for one). A time is the median over the rounds. The ratio is kdjax's time divided by PyTorch's in
the same round, as median and quartiles. Below 1, kdjax is faster.

Memory is the memory of a call without its inputs, and with its results. For kdjax it is the
temporary and output memory of the compiled program. For PyTorch it is the peak of its allocator, by
the memory events of `torch.profiler` on the CPU. Memory that its libraries allocate for themselves
is not included.
"""

import argparse
import functools
import itertools
import math
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import torch
from torch.nn import functional
from torch.profiler import ProfilerActivity, profile

from benchmarks.programs import resized_cross_entropy
from kdjax import losses

CHANNELS = 128  # of the features that FAKD moves
SIZES = [(4, 65, 65, 21), (4, 64, 128, 19), (4, 64, 64, 150)]
# One image of many pixels; its last size is that of a 2048 x 4096 image at stride 8.
LARGE = [(1, 64, 128, 512), (1, 128, 256, 64), (1, 256, 512, 32)]
# Larger PyTorch tables of similarities are skipped.
LARGEST_TABLE = 2**28


class Case(NamedTuple):
    name: str
    size: tuple[int, ...]
    ours: Callable[..., Any]
    theirs: Callable[..., Any] | None
    arguments: tuple[np.ndarray, ...]  # the first receives the gradient


def pixelwise_kl(student, teacher):
    log_q, log_p = torch.log_softmax(student, -1), torch.log_softmax(teacher, -1)
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def gap_weighted_kl(student, teacher, labels):
    truth = labels.clamp(max=student.shape[-1] - 1)[..., None]
    with torch.no_grad():
        p, q = (torch.softmax(x, -1).gather(-1, truth)[..., 0] for x in (teacher, student))
        weight = (p - q).clamp(min=0) * (labels != 255)
    return weight * pixelwise_kl(student, teacher)


def cwd(student, teacher, tau=4.0):
    log_q, log_p = (torch.log_softmax(x.flatten(1, 2) / tau, 1) for x in (student, teacher))
    return tau**2 * (log_p.exp() * (log_p - log_q)).sum(1)


def nfd(student, teacher):
    def normalize(x):
        variance, mean = torch.var_mean(x, (1, 2), correction=0, keepdim=True)
        return (x - mean) / (variance + 1e-5).sqrt()

    return ((normalize(student) - normalize(teacher)) ** 2).mean((1, 2))


def pfs_cosine(student, teacher):
    s, t = (functional.normalize(x.flatten(1, 2), dim=-1) for x in (student, teacher))
    return ((s @ s.transpose(1, 2) - t @ t.transpose(1, 2)) ** 2).mean((1, 2))


def pfs_softmax(student, teacher):
    def log_table(x):
        x = x.flatten(1, 2)
        return torch.log_softmax(x @ x.transpose(1, 2) / math.sqrt(x.shape[-1]), -1)

    log_q, log_p = log_table(student), log_table(teacher)
    return (log_p.exp() * (log_p - log_q)).sum(-1).mean(-1)


def skd_pairwise(student, teacher):
    def nodes(x):
        x = x.permute(0, 3, 1, 2)
        size = (x.shape[2] // 2, x.shape[3] // 2)
        pooled = functional.max_pool2d(x, size, size, ceil_mode=True).flatten(2)
        return pooled / pooled.norm(dim=1, keepdim=True).detach()

    s, t = nodes(student), nodes(teacher)
    return ((s.transpose(1, 2) @ s - t.transpose(1, 2) @ t) ** 2).mean((1, 2))


def augmentation(kernel, covariance, labels, anchor):
    valid = (labels != 255)[..., None]
    variance = covariance[labels.clamp(max=kernel.shape[1] - 1)] * valid
    center = anchor @ kernel.T
    spread = variance @ kernel**2 - 2 * (variance * center) @ kernel
    return spread + (variance * center**2).sum(-1, keepdim=True)


def fakd_kl(features, kernel, bias, teacher, labels, covariance):
    scores, p = features @ kernel + bias, torch.softmax(teacher, -1)
    added = augmentation(kernel, covariance, labels, p)
    bound = torch.logsumexp(scores + added, -1) - (p * scores).sum(-1)
    return (bound + (p * torch.log_softmax(teacher, -1)).sum(-1)) * (labels != 255)


def fakd_cwd(features, kernel, bias, teacher, labels, covariance, tau=4.0):
    scores = (features @ kernel + bias).flatten(1, 2) / tau
    log_p = torch.log_softmax(teacher.flatten(1, 2) / tau, 1)
    table = covariance @ kernel**2
    added = table[labels.clamp(max=kernel.shape[1] - 1)] * (labels != 255)[..., None] / tau**2
    bound = torch.logsumexp(scores + added.flatten(1, 2), 1) - (log_p.exp() * scores).sum(1)
    return tau**2 * (bound + (log_p.exp() * log_p).sum(1))


def cross_entropy(logits, labels):
    logits = logits.permute(0, 3, 1, 2)
    return functional.cross_entropy(logits, labels, ignore_index=255, reduction="none")


def upsampled_cross_entropy(logits, labels):
    size = labels.shape[1:]
    logits = functional.interpolate(logits.permute(0, 3, 1, 2), size, mode="bilinear")
    return functional.cross_entropy(logits, labels, ignore_index=255, reduction="none")


def cases(size, large=False):
    rng = np.random.default_rng(0)
    batch, height, width, classes = size

    def normal(*shape):
        return rng.normal(size=shape).astype(np.float32)

    def labels(*shape):
        drawn = rng.integers(0, classes, shape)
        return np.where(rng.random(shape) < 0.1, 255, drawn).astype(np.int32)

    pair = (normal(*size), normal(*size))
    softmax = functools.partial(losses.pfs, similarity="softmax")
    fits = batch * (height * width) ** 2 <= LARGEST_TABLE
    pfs = [
        Case("pfs cosine", size, losses.pfs, pfs_cosine if fits else None, pair),
        Case("pfs softmax", size, softmax, pfs_softmax if fits else None, pair),
    ]
    if large:
        return pfs

    truth = labels(batch, height, width)
    head = (normal(CHANNELS, classes) / 10, normal(classes))
    covariance = normal(classes, CHANNELS) ** 2
    augmented = (normal(batch, height, width, CHANNELS), *head, pair[1], truth, covariance)
    full = (pair[0], labels(batch, 8 * height, 8 * width))
    return [
        Case("cross_entropy", size, losses.cross_entropy, cross_entropy, (pair[0], truth)),
        Case(
            "upsampled_cross_entropy (x8)",
            size,
            losses.upsampled_cross_entropy,
            upsampled_cross_entropy,
            full,
        ),
        Case(
            "the same in two steps (x8)", size, resized_cross_entropy, upsampled_cross_entropy, full
        ),
        Case("pixelwise_kl", size, losses.pixelwise_kl, pixelwise_kl, pair),
        Case("gap_weighted_kl", size, losses.gap_weighted_kl, gap_weighted_kl, (*pair, truth)),
        Case("cwd", size, losses.cwd, cwd, pair),
        Case("nfd", size, losses.nfd, nfd, pair),
        *pfs,
        Case("skd_pairwise", size, losses.skd_pairwise, skd_pairwise, pair),
        Case(
            f"fakd_kl ({CHANNELS} channels)",
            size,
            functools.partial(losses.fakd_kl, strength=2.0),
            fakd_kl,
            augmented,
        ),
        Case(
            f"fakd_cwd ({CHANNELS} channels)",
            size,
            functools.partial(losses.fakd_cwd, strength=2.0),
            fakd_cwd,
            augmented,
        ),
    ]


def prepare_jax(case, backward):
    """Returns a call, and the megabytes that it needs besides its arguments."""

    def mean(*arguments):
        return jnp.mean(case.ours(*arguments))

    arguments = [jnp.asarray(x) for x in case.arguments]
    function = jax.value_and_grad(mean) if backward else mean
    compiled = jax.jit(function).lower(*arguments).compile()
    memory = compiled.memory_analysis()
    assert memory is not None, "this JAX back end does not say how much memory a program takes"
    needs = (memory.temp_size_in_bytes + memory.output_size_in_bytes) / 1e6
    return lambda: jax.block_until_ready(compiled(*arguments)), needs


def prepare_torch(case, backward):
    device = "cuda" if jax.default_backend() == "gpu" else "cpu"
    arguments = [torch.from_numpy(x).to(device) for x in case.arguments]
    arguments = [x.long() if x.dtype == torch.int32 else x for x in arguments]
    if backward:
        arguments[0].requires_grad_()

    def call():
        value = case.theirs(*arguments).mean()
        if backward:
            arguments[0].grad = None
            value.backward()
        if device == "cuda":
            torch.cuda.synchronize()
        return value.detach()

    call()
    arguments[0].grad = None
    return call, peak_on_gpu(call) if device == "cuda" else peak_of_allocations(call)


def peak_on_gpu(call):
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    return (torch.cuda.max_memory_allocated() - before) / 1e6


def peak_of_allocations(call):
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        call()
    results: Any = profiler.profiler
    events = [event for event in results.kineto_results.events() if event.name() == "[memory]"]
    sizes = [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]
    return max(itertools.accumulate(sizes, initial=0)) / 1e6


def measure(case, backward, rounds):
    ours, our_memory = prepare_jax(case, backward)

    def seconds(call):
        start = time.perf_counter()
        call()
        return time.perf_counter() - start

    once = seconds(ours)
    theirs, their_memory = None, math.nan
    if case.theirs is not None:
        theirs, their_memory = prepare_torch(case, backward)
        first = ours()
        value = first[0] if backward else first
        np.testing.assert_allclose(value, theirs().cpu().numpy(), rtol=1e-3, err_msg=case.name)
        once += seconds(theirs)

    times = [(once, math.nan)]
    # Few rounds if one takes long. A call of more than 20 s is its own warm-up.
    if once < 20 or theirs:
        rounds = max(3, min(rounds, int(20 / once)))
        times = [(seconds(ours), seconds(theirs) if theirs else math.nan) for _ in range(rounds)]
    our_time, their_time = (1e3 * statistics.median(x) for x in zip(*times, strict=True))
    size = " x ".join(map(str, case.size))
    what = "forward and backward" if backward else "forward"
    row = [case.name, size, what, f"{our_time:.1f}"]
    if theirs is None:
        return [*row, "does not fit", "", f"{our_memory:.1f}", ""]
    low, middle, high = np.percentile([a / b for a, b in times], [25, 50, 75])
    ratio = f"{middle:.2f} ({low:.2f} to {high:.2f})"
    return [*row, f"{their_time:.1f}", ratio, f"{our_memory:.1f}", f"{their_memory:.1f}"]


def machine():
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    cpu = next((x.split(":")[1].strip() for x in lines if x.startswith("model name")), "unknown")
    cores = f"{len(os.sched_getaffinity(0))} of {os.cpu_count()} cores"
    return (
        f"{jax.devices()[0].device_kind}, {cpu}, {cores}; Python {platform.python_version()}, "
        f"JAX {jax.__version__}, PyTorch {torch.__version__} "
        f"({torch.get_num_threads()} threads); load {os.getloadavg()[0]:.1f} at the start."
    )


def main():
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="one small size, two rounds")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--only", default="", help="parts of names, with commas between")
    flags = parser.parse_args()

    if flags.quick:
        every, flags.rounds = cases((2, 16, 16, 19)), 3
    else:
        every = [case for size in SIZES for case in cases(size)]
        every += [case for size in LARGE for case in cases(size, large=True)]
    wanted = flags.only.split(",")
    print(f"`{' '.join(['python -m benchmarks.losses', *sys.argv[1:]])}`\n\n{machine()}\n")
    print("| loss | size | pass | kdjax, ms | PyTorch, ms | ratio | kdjax, MB | PyTorch, MB |")
    print("| --- | --- | --- | ---: | ---: | ---: | ---: | ---: |")
    for case in every:
        if any(part in case.name for part in wanted):
            for backward in (False, True):
                print("|", " | ".join(measure(case, backward, flags.rounds)), "|", flush=True)


if __name__ == "__main__":
    main()
