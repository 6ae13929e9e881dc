"""Shared by all benchmarks: interleaved timings, rows, the printed table, the JSON file."""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

Row = dict[str, str | float]


def arguments(
    description: str | None, threads: int = 2, profile: bool = False
) -> argparse.Namespace:
    """The options of a benchmark, with ``--profile`` if it has one; sets the number of threads."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    parser.add_argument("--threads", type=int, default=threads)
    parser.add_argument("--repeat", type=int, default=7, help="repetitions; the least is taken")
    if profile:
        parser.add_argument("--profile", action="store_true", help="where the time goes instead")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    return given


def least(routines: Mapping[str, Callable[[], object]], repeat: int) -> dict[str, float]:
    """Minimum seconds of each routine over ``repeat`` rounds; every round runs all of them.

    So a slow phase of the machine affects all of them. One round before is not counted.
    """
    best = dict.fromkeys(routines, float("inf"))
    for round_ in range(repeat + 1):
        for name, routine in routines.items():
            started = time.perf_counter()
            routine()
            if round_ > 0:
                best[name] = min(best[name], time.perf_counter() - started)
    return best


def busiest(run: Callable[[], object], steps: int, top: int) -> dict[str, Any]:
    """Where the time of ``run`` goes: kernels where there is a GPU, else operators.

    Args:
        run: is called once; does that many steps.
        steps: the figures are of one of them.
        top: how many entries are listed, those that take most time by themselves.

    Returns:
        ``ms`` of all entries together, how many ``calls`` of them, the ``launches`` by the host
        (None without a GPU), and ``top``: entries with their name, ms and calls.
    """
    gpu = torch.cuda.is_available()
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if gpu else [])]
    with profile(activities=activities) as recorded:
        run()
        if gpu:
            torch.cuda.synchronize()
    events = recorded.key_averages()
    entries = [
        (event.self_device_time_total if gpu else event.self_cpu_time_total, event)
        for event in events
        # What torch records around an optimizer's step is no kernel.
        if (event.device_type == DeviceType.CUDA) is gpu and not event.key.startswith("Optimizer.")
    ]
    entries.sort(key=lambda entry: -entry[0])
    launches = [e.count for e in events if "LaunchKernel" in e.key or "GraphLaunch" in e.key]
    return {
        "ms": sum(micros for micros, _ in entries) / 1000 / steps,
        "calls": sum(event.count for _, event in entries) / steps,
        "launches": sum(launches) / steps if gpu else None,
        "top": [
            {"name": event.key, "ms": micros / 1000 / steps, "calls": event.count / steps}
            for micros, event in entries[:top]
        ],
    }


def row(name: str, ours: float, peer: float, peer_name: str, unit: str) -> Row:
    """One row; the ratio is ours / peer."""
    return {
        "name": name,
        "ours": ours,
        "peer": peer,
        "peer_name": peer_name,
        "unit": unit,
        "ratio": ours / peer,
    }


def show(rows: list[Row], path: Path | None) -> None:
    """Print the rows, and write them to a file if one is requested."""
    print(f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    print(f"{'name':22} {'ours':>12} {'peer':>12} {'unit':8} {'ratio':>8}  peer is")
    for each in rows:
        print(
            f"{each['name']:22} {each['ours']:12.5g} {each['peer']:12.5g} {each['unit']:8} "
            f"{each['ratio']:8.3g}  {each['peer_name']}"
        )
    if path is not None:
        path.write_text(json.dumps(rows, indent=2) + "\n")
