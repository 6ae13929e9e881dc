"""The budget as a promise: random small networks, budgets, methods and settings.

    python benchmarks/budgets.py --log budgets.jsonl [--count 2000] [--jobs 2] [--json FILE]

Each case trains a few steps on noise, writes its file, and decodes it. A line of the log is one
case; a campaign that was stopped goes on with the cases that are missing. A case is a fault if its
file is larger than the budget, differs from the trained model, or fills less than 97 % of the
budget without a reason; if a BudgetError names a smallest budget that is then refused; or if
anything but an error of the library is raised.
"""

from __future__ import annotations

import argparse
import json
import random
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import atmc
from atmc import methods
from atmc.errors import AtmcError, BudgetError

CLASSES, EXAMPLES, BATCH = 3, 24, 8
ROOM = 0.03  # of a budget that may stay empty without a reason
SMALL = 250  # bits above the smallest budget in which there may be no room for a weight


class Residual(nn.Module):
    """x + f(x)."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.body(x)
        return out


class Tied(nn.Module):
    """Two layers with one weight."""

    def __init__(self, first: nn.Module, second: nn.Module) -> None:
        super().__init__()
        self.first, self.second = first, second
        second.weight = first.weight

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.second(self.first(x).relu())
        return out


class Tokens(nn.Module):
    """Self-attention over the places of planes, and a norm."""

    def __init__(self, width: int, heads: int, bias: bool) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(width, heads, bias=bias, batch_first=True)
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(2).transpose(1, 2)
        tokens = self.norm(tokens + self.attention(tokens, tokens, tokens)[0])
        return tokens.transpose(1, 2).reshape(x.shape)


def network(rng: random.Random) -> tuple[nn.Module, tuple[int, ...]]:
    """A random network and the shape of one input."""
    shape = rng.choice([(1, 8, 8), (3, 7, 5), (2, 6, 6), (4, 9, 3), (11,), (30,)])
    layers: list[nn.Module] = []
    size = shape
    for _ in range(rng.randint(0, 3)):
        layers.append(_planes(rng, size) if len(size) == 3 else _vector(rng, size[0]))
        layers.append(rng.choice([nn.ReLU, nn.Tanh, nn.SiLU, nn.Identity])())
        size = tuple(nn.Sequential(*layers).eval()(torch.rand(1, *shape)).shape[1:])
        if len(size) == 3 and min(size[1:]) > 2 and rng.random() < 0.3:
            layers.append(rng.choice([nn.MaxPool2d(2), nn.AvgPool2d(2)]))
            size = (size[0], size[1] // 2, size[2] // 2)
    if len(size) == 3:
        layers.append(nn.Flatten() if rng.random() < 0.7 else nn.AdaptiveAvgPool2d(1))
        layers.append(nn.Flatten())
    width = nn.Sequential(*layers).eval()(torch.rand(1, *shape)).shape[1]
    bias = rng.random() < 0.5
    layers.append(nn.Linear(width, CLASSES, bias=bias))
    return nn.Sequential(*layers), shape


def _planes(rng: random.Random, size: tuple[int, ...]) -> nn.Module:
    """A layer on planes of this size, whose output has planes too."""
    channels, bias = size[0], rng.random() < 0.5
    width = rng.choice([1, 2, 3, 5, 8, 17])
    kernel = rng.choice([1, 2, 3])
    kernel = min(kernel, *size[1:])
    kind = rng.choice(["plain", "grouped", "transposed", "norm", "residual", "tied", "tokens"])
    groups = rng.choice([g for g in range(1, channels + 1) if channels % g == 0])
    same = partial(nn.Conv2d, channels, channels, 1, bias=bias)
    if kind == "grouped":
        return nn.Conv2d(channels, groups * width, kernel, groups=groups, bias=bias)
    if kind == "transposed":
        return nn.ConvTranspose2d(channels, groups * width, kernel, groups=groups, bias=bias)
    if kind == "norm":
        norm = rng.choice([nn.BatchNorm2d(width), nn.GroupNorm(1, width), nn.InstanceNorm2d(width)])
        return nn.Sequential(nn.Conv2d(channels, width, kernel, padding=1, bias=bias), norm)
    if kind == "residual":
        return Residual(nn.Sequential(same(), nn.BatchNorm2d(channels), nn.ReLU(), same()))
    if kind == "tied":
        return Tied(same(), same())
    if kind == "tokens":
        return Tokens(channels, groups, bias)
    return nn.Conv2d(channels, width, kernel, stride=rng.choice([1, 2]), bias=bias)


def _vector(rng: random.Random, size: int) -> nn.Module:
    bias, width = rng.random() < 0.5, rng.choice([1, 2, 7, 16, 33])
    kind = rng.choice(["plain", "norm", "residual", "tied"])
    if kind == "norm":
        return nn.Sequential(nn.Linear(size, width, bias=bias), nn.BatchNorm1d(width))
    if kind == "residual":
        return Residual(nn.Linear(size, size, bias=bias))
    if kind == "tied":
        return Tied(nn.Linear(size, size, bias=bias), nn.Linear(size, size, bias=bias))
    return nn.Linear(size, width, bias=bias)


def case(seed: int) -> dict[str, Any]:
    """One case: what it was, and its fault, which is None where there is none."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    rng = random.Random(seed)
    torch.manual_seed(seed)
    model, shape = network(rng)
    x, y = torch.rand(EXAMPLES, *shape), torch.arange(EXAMPLES) % CLASSES
    loader = [(x[i : i + BATCH], y[i : i + BATCH]) for i in range(0, EXAMPLES, BATCH)]
    method = rng.choice([name for name in methods.names() if name != "dense"])
    settings: dict[str, Any] = {
        "method": method,
        "epochs": rng.randint(1, 4),
        "dense_epochs": 1,
        "level_epochs": rng.randint(0, 2),
        "lr": 10 ** rng.uniform(-4, -1),
        "bits": rng.choice(["auto", "auto", "auto", *range(1, 9)]),
        "eps": 0.05,
        "steps": 1,
        "seed": seed,
        "device": "cpu",
    }
    if method == "atmc":
        settings["factors"] = rng.choice(["c", "uvc", "uv"])
    compress = partial(atmc.compress, model, loader, **settings)
    dense = 32 * sum(value.numel() for value in model.state_dict().values())
    row: dict[str, Any] = {"seed": seed, "method": method, "dense": dense, "fault": None}
    try:
        row["least"] = least = _least(compress)
        # Many at the smallest, others up to ten times the dense network.
        share = rng.random()
        budget = least if share < 0.2 else round(least * (10 * dense / least) ** rng.random())
        row["budget"] = budget = max(budget, least)
        result = compress(budget_bits=budget)
        size, unused = result.report["size"]["file_bits"], result.report["unused"]
        nonzeros = result.report["size"]["nonzeros"]
        reason = None if unused is None else unused["reason"]
        row |= {"bits": size, "nonzeros": nonzeros, "reason": reason}
        row["fault"] = _fault(result, budget, size, reason)
        if nonzeros == 0 and budget > least + SMALL:
            row["fault"] = row["fault"] or "no weight is left"
    except AtmcError as error:
        row["error"] = f"{type(error).__name__}: {error}"
        if isinstance(error, BudgetError) and "least" in row:
            row["fault"] = f"after {row['least']} bits were named the smallest: {error}"
    except Exception:
        row["fault"] = traceback.format_exc().splitlines()[-1]
    return row


def _least(compress: Callable[..., Any]) -> int:
    """The smallest budget, as the first error says."""
    try:
        compress(budget_bits=1)
    except BudgetError as error:
        assert error.smallest is not None
        return error.smallest
    raise AssertionError("a budget of one bit is kept")


def _fault(result: Any, budget: int, size: int, reason: str | None) -> str | None:
    if not size == 8 * len(result.data) <= budget:
        return f"the file has {8 * len(result.data)} bits, the report says {size}"
    if budget - size > ROOM * budget and not reason:
        return f"{size} of {budget} bits, and no reason"
    decoded = result.model.state_dict().values()
    if not all(bool(value.isfinite().all()) for value in decoded if value.is_floating_point()):
        return "the decoded model holds NaN or infinity"
    return None


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Counts over all cases."""
    written = [row for row in rows if "bits" in row]
    full = [row for row in written if row["budget"] - row["bits"] <= ROOM * row["budget"]]
    return {
        "cases": len(rows),
        "kept": sum(row["bits"] <= row["budget"] for row in written),
        "full": len(full),
        "told why not": len(written) - len(full) - sum(row["fault"] is not None for row in written),
        "refused": Counter(row["error"].partition(":")[0] for row in rows if "error" in row),
        "methods": Counter(row["method"] for row in rows),
        "faults": [row for row in rows if row["fault"] is not None],
    }


def main() -> None:
    """The campaign."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--log", type=Path, required=True, help="one line of JSON for each case")
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--json", type=Path, help="write the counts to this file")
    given = parser.parse_args()
    lines = given.log.read_text().splitlines() if given.log.exists() else []
    rows = [json.loads(line) for line in lines]
    missing = sorted(set(range(given.count)) - {row["seed"] for row in rows})
    with (
        ProcessPoolExecutor(given.jobs, get_context("forkserver")) as pool,
        given.log.open("a") as log,
    ):
        for row in pool.map(case, missing):
            rows.append(row)
            print(json.dumps(row), file=log, flush=True)
            if row["fault"] is not None:
                print(f"seed {row['seed']}, {row['method']}: {row['fault']}", flush=True)
    counts = summary(rows)
    print(json.dumps(counts, indent=2))
    if given.json is not None:
        given.json.write_text(json.dumps(counts, indent=2) + "\n")


if __name__ == "__main__":
    main()
