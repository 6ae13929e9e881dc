"""What a GPU does within a time limit: the step, a dense start, compressed files, attacks on them.

    python benchmarks/gpu.py --data DIR --out DIR [--minutes M] [--model NAME]

The data are the folders train/CLASS and test/CLASS of images, or an archive of them, which is
unpacked next to --out. The phases, in order:

    rates            seconds of a step of training and of a gradient, by which the rest is planned
    step             ms of the plain and the ATMC step, their parts, the matrix rate, the kernels
    step-compiled    the two steps with the compiled attack
    dense            the dense start, in about 40 % of the time
    atmc-5 ...       compression to 5, 1 and 0.3 % of the dense bits, then three other methods at
                     1 %, and `atmc` with all factors, in about 7 % of the time each
    autoattack-...   AutoAttack, and the attacks of the rows before, on 1,000 images of each

A phase that does not fit into what is left of M minutes is left out; one that fails is recorded
with its error. Afterwards --out holds phases/NAME.json, summary.json (all of them),
dense.safetensors, artifacts/NAME.atmc and artifacts.tar (all of these). A second call does what is
missing or has failed, also where only summary.json and artifacts.tar are in --out.
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import io
import json
import os
import platform
import shlex
import shutil
import statistics
import tarfile
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import gpu_step
import torch

import atmc
from atmc.accounting import dense_bits
from atmc.attacks.registry import attack
from atmc.data import Dataset, InMemory
from atmc.data.streamed import Streamed
from atmc.engine.compression import EpochFigures
from atmc.errors import one_line
from atmc.evaluation import evaluate, predict
from atmc.files import write
from atmc.hardware import choose_device
from atmc.models.preparation import copy_model
from atmc.models.sources import channels_last
from atmc.models.weights import weights_bytes
from atmc.training.objective import Objective

EPS = "8/255"
BATCH = 256
DENSE: dict[str, Any] = {
    **{"method": "dense", "train_attack": "pgd", "steps": 5, "warmup": 0.0},
    **{"dense_optimizer": "sgd", "dense_lr": 0.2, "dense_schedule": "one-cycle"},
    **{"dense_weight_decay": 5e-4, "dense_ema": 0.995},
}
COMPRESSED: dict[str, Any] = {"train_attack": "n-fgsm", "distill": 0.5}
COMPRESSIONS: dict[str, tuple[dict[str, Any], float]] = {  # the budget as a share of the dense bits
    "atmc-5": ({"method": "atmc"}, 0.05),
    "atmc-1": ({"method": "atmc"}, 0.01),
    "atmc-0.3": ({"method": "atmc"}, 0.003),
    "l0-1": ({"method": "l0"}, 0.01),
    "admm-irregular-1": ({"method": "admm-irregular"}, 0.01),
    "hydra-1": ({"method": "hydra"}, 0.01),
    "atmc-uvc-1": ({"method": "atmc", "factors": "uvc"}, 0.01),
}
SHARES = {"dense": 0.4, **dict.fromkeys(COMPRESSIONS, 0.07)}  # of the time
MOST_EPOCHS, FEWEST_EPOCHS = 100, 3  # of the dense start; of a compression, its levels among them
EVALUATED = 0.15  # share of the time of a compression
LOADING = 1.1  # times of a step, with its batch and what comes between steps

ATTACKS = ("fgsm", "pgd-20", "margin-20")
GRADIENTS = 25  # of an image: 41, but half of the images are broken early
VALIDATED, VALIDATION_GRADIENTS = 500, 11  # after each epoch
AUTOATTACK_EXAMPLES = 1000
# About how many gradients AutoAttack takes, of an image that is classified correctly, and of one
# that its first part leaves besides: nine targets twice, and 5,000 forward passes.
FIRST_GRADIENTS, OTHER_GRADIENTS = 100, 4400

PARTS = ("train", "val", "test")
RESERVE = 20.0  # seconds that stay free, or a twentieth of the time where that is less
COMPILATION = 60.0  # seconds that are assumed
MOST_BYTES = 16_000_000  # of artifacts.tar, and of the dense start in 16 bits
OPTIONAL = {"pyautoattack": "autoattack", "triton": "step-compiled on a GPU"}


class SkippedError(Exception):
    """A phase is left out: there is no time for it, or one that it needs has no result."""


@dataclass
class Bench:
    """One call: where it writes, what it runs on, its time, and the phases until now."""

    out: Path
    dataset: Dataset
    model: str
    device: torch.device
    minutes: float
    started: float
    phases: dict[str, dict[str, Any]] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)

    def log(self, line: str) -> None:
        """Print a line of progress at once."""
        print(f"{time.monotonic() - self.started:6.1f} s  {line}", flush=True)

    @property
    def left(self) -> float:
        """Seconds that phases may still take."""
        whole = 60 * self.minutes
        return whole - min(RESERVE, 0.05 * whole) - (time.monotonic() - self.started)

    def require(self, seconds: float) -> None:
        """Leave the phase out where that many seconds are not left."""
        if seconds > self.left:
            left = max(0.0, self.left)
            raise SkippedError(f"needs about {seconds:.0f} s, and {left:.0f} s are left")

    def result(self, name: str) -> dict[str, Any]:
        """What a phase has measured, which another needs."""
        if "error" in self.phases.get(name, {"error": None}):
            raise SkippedError(f"needs the result of {name}")
        return self.phases[name]

    def share(self, name: str) -> float:
        """Seconds for a training, of what is left for it and those after it."""
        waiting = [s for n, s in SHARES.items() if n not in self.phases and n not in self.skipped]
        return min(SHARES[name] * 60 * self.minutes, self.left * SHARES[name] / sum(waiting))

    @property
    def steps(self) -> int:
        """Training steps of an epoch."""
        return max(1, len(self.dataset.train) // BATCH)

    def epochs(
        self, name: str, epoch: float, other: float, fewest: int
    ) -> tuple[int, dict[str, float]]:
        """How many epochs a training takes, and the seconds by which they were chosen.

        Args:
            name: of the phase.
            epoch: seconds of an epoch.
            other: seconds of what is no epoch.
            fewest: that it needs.
        """
        share = self.share(name)
        count = min(MOST_EPOCHS, int((share - other) / epoch))
        if count < fewest:
            self.require(other + fewest * epoch)
        return max(fewest, count), {"share_s": share, "epoch_s": epoch, "other_s": other}


# Phases: each returns what its JSON holds.


def rates(bench: Bench) -> dict[str, Any]:
    """Seconds of a step of both trainings, and of a float32 gradient of one image."""
    shape, device = bench.dataset.input_shape, bench.device
    x, y = gpu_step.batch(BATCH, shape, device)
    eps, autocast = gpu_step.EPS, gpu_step.autocast()
    dense = Objective(eps, DENSE["steps"], precision=autocast)
    teacher = channels_last(atmc.models.create(bench.model).to(device))
    compressed = Objective(
        eps,
        train_attack=COMPRESSED["train_attack"],
        teacher=teacher,
        distill=COMPRESSED["distill"],
        precision=autocast,
    )
    timed = gpu_step.measure(
        {
            "dense": gpu_step.loop(bench.model, x, y, dense),
            "compress": gpu_step.loop(bench.model, x, y, compressed, compressed=True),
        },
        device,
    )
    x = gpu_step.batch(VALIDATED, shape, device)[0]
    steps = 10
    batches = [(x, predict(teacher, x))]
    harmless = attack("pgd", eps=1e-6, steps=steps)  # so that no image leaves the batch
    evaluations = [
        gpu_step.milliseconds(lambda: evaluate(teacher, batches, [harmless]), device)
        for _ in range(2)
    ]
    return {
        "dense_step_s": timed["dense"]["ms"] / 1000,
        "compress_step_s": timed["compress"]["ms"] / 1000,
        "gradient_s": evaluations[-1] / 1000 / (steps * VALIDATED),
    }


def step(bench: Bench, compiled: bool) -> dict[str, Any]:
    """The table of the step."""
    passes = gpu_step.BATCH / BATCH * (2 * gpu_step.ATTACK_STEPS + 3) / (2 * DENSE["steps"] + 3)
    plain = bench.result("rates")["dense_step_s"] * passes
    seconds = 6 * plain * gpu_step.EVERY * (gpu_step.ROUNDS + 1)  # both, parts, and profiles
    bench.require(seconds + (COMPILATION if compiled else 0))
    shape = bench.dataset.input_shape
    return gpu_step.table(bench.model, shape, bench.device, compiled=compiled)


def faster_compiled(bench: Bench, kind: str, seconds: float) -> bool:
    """Whether a training of that many seconds gains more by compilation than it takes."""
    rows: dict[str, Any] = {}
    for name in ("step", "step-compiled"):
        rows |= bench.phases.get(name, {}).get("rows", {})
    if not {f"{kind}-eager", f"{kind}-compiled"} <= rows.keys():
        return False
    compiled = rows[f"{kind}-compiled"]
    saving = 1 - compiled["ms"] / rows[f"{kind}-eager"]["ms"]
    return bool(saving * seconds > 2 * compiled["warmup_s"])


def examples(bench: Bench) -> int:
    """Test images that every row is evaluated on: all, or what a part of the time is enough for."""
    if "examples" in bench.phases.get("dense", {}):
        return int(bench.phases["dense"]["examples"])
    seconds = EVALUATED * min(SHARES.values()) * 60 * bench.minutes
    count = int(seconds / (GRADIENTS * bench.result("rates")["gradient_s"]))
    return min(len(bench.dataset.test), max(500, count // 500 * 500))


def validation(bench: Bench) -> float:
    """Seconds of the validation after an epoch."""
    count = min(VALIDATED, len(bench.dataset.val))
    return float(bench.result("rates")["gradient_s"] * VALIDATION_GRADIENTS * count)


def dense(bench: Bench) -> dict[str, Any]:
    """The dense start; its weights are written."""
    measured = bench.result("rates")
    epoch = LOADING * measured["dense_step_s"] * bench.steps + validation(bench)
    other = examples(bench) * GRADIENTS * measured["gradient_s"] + 0.05 * bench.share("dense")
    epochs, plan = bench.epochs("dense", epoch, other, fewest=1)
    settings = {**DENSE, "dense_epochs": epochs}
    settings["compiled"] = faster_compiled(bench, "plain", epochs * epoch)
    result, row = train(bench, "dense", settings)
    write(bench.out / "dense.safetensors", weights_bytes(result.dense))
    data = weights_bytes(copy_model(result.dense).bfloat16())
    if len(data) <= MOST_BYTES:
        write(bench.out / "dense-bfloat16.safetensors", data)
    return {"plan": plan, **row, "bfloat16_bytes": len(data)}


def compress(bench: Bench, name: str) -> dict[str, Any]:
    """One method at one budget, from the dense start."""
    weights = bench.out / "dense.safetensors"
    bench.result("dense")
    if not weights.is_file():
        raise SkippedError(f"needs {weights}: remove phases/dense.json to train it again")
    measured = bench.result("rates")
    epoch = LOADING * measured["compress_step_s"] * bench.steps + validation(bench)
    other = 0.25 * bench.share(name)
    for each in COMPRESSIONS:  # the last one that has run tells better
        if seconds := bench.phases.get(each, {}).get("measured"):
            epoch, other = seconds["epoch_s"], seconds["other_s"]
    other += examples(bench) * GRADIENTS * measured["gradient_s"]
    epochs, plan = bench.epochs(name, epoch, other, fewest=FEWEST_EPOCHS)
    levels = max(1, epochs // 6)
    chosen, share = COMPRESSIONS[name]
    settings = {
        **chosen,
        **COMPRESSED,
        "budget_bits": round(share * dense_bits(atmc.models.create(bench.model))),
        "weights": str(weights),
        **{"epochs": epochs - levels, "level_epochs": levels},
        "compiled": faster_compiled(bench, "atmc", epochs * epoch),
    }
    result, row = train(bench, name, settings)
    (bench.out / "artifacts").mkdir(exist_ok=True)
    result.save(bench.out / "artifacts" / f"{name}.atmc")
    return {"plan": plan, **row}


def train(
    bench: Bench, name: str, settings: Mapping[str, Any]
) -> tuple[atmc.Result, dict[str, Any]]:
    """A run, and its row with the commands that repeat it."""
    settings = {
        **{"model": bench.model, "eps": EPS, "batch_size": BATCH, "seed": 0},
        **settings,
        **{"eval_steps": 20, "eval_examples": examples(bench)},
    }
    bench.log(f"{name}: {command('compress', [], settings)}")
    history: list[dict[str, Any]] = []

    def on_epoch(figures: EpochFigures) -> None:
        history.append(asdict(figures))
        accuracies = f"{figures.clean or 0:.4f} / {figures.robust or 0:.4f}"
        bench.log(f"{name}: {figures.stage} {figures.epoch + 1}: validation {accuracies}")

    started = time.monotonic()
    result = atmc.compress(
        dataset=bench.dataset,
        attacks=[attack(each, eps=EPS) for each in ATTACKS],
        on_epoch=on_epoch,
        **settings,
    )
    report = result.report
    seconds = time.monotonic() - started - report["seconds"]["evaluate"]
    ends = [each["seconds"] for each in history]
    epoch = statistics.median(b - a for a, b in pairwise(ends)) if len(ends) > 1 else seconds
    file = "dense.safetensors" if name == "dense" else f"artifacts/{name}.atmc"
    return result, {
        "command": command("compress", [], {"dataset": bench.dataset.name, **settings}),
        "evaluation": evaluation(bench, file, ATTACKS, settings["eval_examples"]),
        "examples": settings["eval_examples"],
        "measured": {"epoch_s": epoch, "other_s": max(0.0, seconds - epoch * len(ends))},
        "validation": history,
        "report": report,
    }


def evaluation(bench: Bench, file: str, attacks: tuple[str, ...], count: int) -> str:
    """The command that evaluates a file."""
    options: dict[str, Any] = {} if file.endswith(".atmc") else {"model": bench.model}
    options |= {"dataset": bench.dataset.name, "eps": EPS, "examples": count}
    words = [word for name in attacks for word in ("--attack", name)]
    return command("evaluate", [str(bench.out / file)], options, words)


def command(
    name: str, arguments: list[str], settings: Mapping[str, Any], others: list[str] | None = None
) -> str:
    """A command line of atmc with settings as its options."""
    words = ["atmc", name, *arguments]
    for key, value in settings.items():
        text = str(value).lower() if isinstance(value, bool) else str(value)
        words += ["--" + key.replace("_", "-"), text]
    return shlex.join([*words, *(others or [])])


def autoattack(bench: Bench, target: str) -> dict[str, Any]:
    """All attacks and AutoAttack on the first images of the test split."""
    accuracy = bench.result(target)["report"]["accuracy"]
    gradients = FIRST_GRADIENTS * accuracy["clean"] + OTHER_GRADIENTS * accuracy["worst"]
    count = min(AUTOATTACK_EXAMPLES, len(bench.dataset.test))
    expected = count * gradients * bench.result("rates")["gradient_s"]
    ratio = 1.0
    for name, result in bench.phases.items():
        if name.startswith("autoattack-") and result.get("expected_s"):
            ratio = result["seconds"] / result["expected_s"]
    bench.require(ratio * expected)
    file = "dense.safetensors" if target == "dense" else f"artifacts/{target}.atmc"
    if not (bench.out / file).is_file():
        raise SkippedError(f"needs {bench.out / file}")
    attacks = (*ATTACKS, "autoattack")
    measured = atmc.evaluate(
        bench.out / file,
        model=bench.model if target == "dense" else None,
        dataset=bench.dataset,
        attacks=attacks,
        eps=EPS,
        examples=count,
    )
    return {
        "command": evaluation(bench, file, attacks, count),
        "expected_s": expected,
        "examples": count,
        **{key: measured[key] for key in ("accuracy", "attacks", "warnings")},
    }


PHASES: dict[str, Callable[[Bench], dict[str, Any]]] = {
    "rates": rates,
    "step": partial(step, compiled=False),
    "step-compiled": partial(step, compiled=True),
    "dense": dense,
    **{name: partial(compress, name=name) for name in COMPRESSIONS},
    **{f"autoattack-{name}": partial(autoattack, target=name) for name in SHARES},
}


def run_phase(bench: Bench, name: str) -> None:
    """One phase, and its JSON; a phase that is left out has none."""
    started = time.monotonic()
    gpu = bench.device.type == "cuda"
    if gpu:
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    try:
        result = PHASES[name](bench)
    except SkippedError as skipped:
        bench.skipped[name] = str(skipped)
        bench.log(f"{name}: left out: {skipped}")
        return
    except Exception as error:  # of any kind: the next phases go on
        result = {"error": f"{type(error).__name__}: {one_line(error)}"}
        result["traceback"] = traceback.format_exc()[-2000:]
    result |= {
        "seconds": time.monotonic() - started,
        "peak_bytes": torch.cuda.max_memory_allocated() if gpu else None,
        "machine": machine(bench.device),
    }
    bench.phases[name] = result
    write(bench.out / "phases" / f"{name}.json", as_json(result))
    bench.log(f"{name}: {result.get('error', 'done')} ({result['seconds']:.1f} s)")


def machine(device: torch.device) -> dict[str, Any]:
    """Where and with what a phase has run."""
    gpu = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if gpu else platform.processor() or "cpu",
        "cores": os.cpu_count(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda if gpu else None,
        "python": platform.python_version(),
        "atmc": atmc.__version__,
        "missing": {
            package: use
            for package, use in OPTIONAL.items()
            if importlib.util.find_spec(package) is None
        },
    }


def as_json(value: dict[str, Any]) -> bytes:
    """The content of a JSON file."""
    return (json.dumps(value, indent=1) + "\n").encode()


def restore(out: Path) -> dict[str, dict[str, Any]]:
    """The results of earlier calls, without those that failed.

    What only summary.json and artifacts.tar hold becomes files again.
    """
    (out / "phases").mkdir(parents=True, exist_ok=True)
    if (out / "summary.json").is_file():
        for name, result in json.loads((out / "summary.json").read_text())["phases"].items():
            path = out / "phases" / f"{name}.json"
            if not path.exists():
                write(path, as_json(result))
    if (out / "artifacts.tar").is_file() and not (out / "artifacts").exists():
        with tarfile.open(out / "artifacts.tar") as archive:
            archive.extractall(out / "artifacts", filter="data")
    paths = ((name, out / "phases" / f"{name}.json") for name in PHASES if name != "rates")
    results = {name: json.loads(path.read_text()) for name, path in paths if path.is_file()}
    return {name: result for name, result in results.items() if "error" not in result}


def rows(bench: Bench) -> list[dict[str, Any]]:
    """The dense start and the files, each with its size and its accuracies."""
    lines = []
    for name in SHARES:
        phase = bench.phases.get(name, {})
        if "report" not in phase:
            continue
        report, attacked = phase["report"], bench.phases.get(f"autoattack-{name}", {})
        lines.append(
            {
                "name": name,
                "budget_bits": report["budget_bits"],
                **{k: report["size"][k] for k in ("file_bits", "paper_bits", "nonzeros")},
                "seconds": report["seconds"],
                "examples": phase["examples"],
                **report["accuracy"],
                "autoattack_examples": attacked.get("examples"),
                "autoattack": attacked.get("accuracy"),
            }
        )
    return lines


def write_summary(bench: Bench) -> None:
    """Write summary.json and artifacts.tar, of all phases until now."""
    tar, too_many = io.BytesIO(), []
    with tarfile.open(fileobj=tar, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for path in sorted((bench.out / "artifacts").glob("*.atmc")):
            # A header and an end come with it, and whole records.
            if tar.tell() + path.stat().st_size + 2 * tarfile.RECORDSIZE <= MOST_BYTES:
                archive.add(path, path.name)
            else:
                too_many.append(path.name)
    write(bench.out / "artifacts.tar", tar.getvalue())
    dataset = bench.dataset
    counts = {name: len(getattr(dataset, name)) for name in PARTS}
    summary = {
        "minutes": bench.minutes,
        "model": bench.model,
        "data": {"name": dataset.name, "classes": dataset.num_classes, **counts},
        "machine": machine(bench.device),
        "rows": rows(bench),
        "left_out": bench.skipped,
        "not_in_artifacts_tar": too_many,
        "phases": bench.phases,
    }
    write(bench.out / "summary.json", as_json(summary))


def show(bench: Bench) -> None:
    """Print the step's table and the rows."""
    for phase in ("step", "step-compiled"):
        for name, each in bench.phases.get(phase, {}).get("rows", {}).items():
            print(f"{name:18} {each['ms']:9.2f} ms {each['share']:8.1%} of the matrix rate")
        for name, ms in bench.phases.get(phase, {}).get("parts", {}).items():
            print(f"{name:18} {ms:9.2f}")
    attacks = ("clean", "fgsm", "pgd", "margin", "worst")
    print(f"{'':18} {'file bits':>12} " + " ".join(f"{a:>7}" for a in (*attacks, "AA", "worst")))
    for row in rows(bench):
        stronger = row["autoattack"] or {}
        values = [row[a] for a in attacks] + [stronger.get(a) for a in ("autoattack", "worst")]
        shown = " ".join("      –" if v is None else f"{v:7.2%}" for v in values)
        print(f"{row['name']:18} {row['file_bits']:12,} {shown}")


def unpacked(data: Path, out: Path) -> Path:
    """The folder of the data; an archive is unpacked next to ``out``, once."""
    if data.is_dir():
        return data
    folder = out.with_name(f"{out.name}-data")
    if not folder.exists():
        unfinished = out.with_name(f"{out.name}-data.part")
        shutil.rmtree(unfinished, ignore_errors=True)
        with tarfile.open(data) as archive:
            archive.extractall(unfinished, filter="data")
        unfinished.rename(folder)
    return folder


def load(folder: Path) -> Dataset:
    """The images, read once for all runs, and before the GPU is used: processes are forked."""
    dataset = atmc.data.load(f"imagefolder:{folder}")

    def read(part: Streamed) -> InMemory:
        x, y = part.head(None)
        return InMemory((255 * x).round().byte(), y, part.augmentation)

    return replace(dataset, **{name: read(getattr(dataset, name)) for name in PARTS})


def main() -> None:
    """All phases that fit."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="the folder, or the archive")
    parser.add_argument("--out", type=Path, required=True, help="the folder of the results")
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--model", default="resnet18", help="a network of the zoo")
    options = parser.parse_args()
    started = time.monotonic()
    out = options.out.absolute()
    phases = restore(out)
    folder = unpacked(options.data.absolute(), out)
    dataset = load(folder)
    device = choose_device("auto")
    bench = Bench(out, dataset, options.model, device, options.minutes, started, phases)
    bench.log(f"{machine(device)}, {len(dataset.train)} images; done: {', '.join(phases) or '–'}")
    for name in PHASES:
        if name not in bench.phases:
            run_phase(bench, name)
            write_summary(bench)
    show(bench)


if __name__ == "__main__":
    main()
