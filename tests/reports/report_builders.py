"""Run folders without training: the files that a run leaves, with figures of our choice."""

import json
from functools import cache

import torch

import atmc
from atmc import codec, models
from atmc.artifact import to_artifact
from atmc.factorization.layers import named_factors


@cache
def artifact(seed=0):
    """The bytes of a small artifact of digits-cnn: untrained, one entry in 64 is nonzero."""
    torch.manual_seed(seed)
    model = models.create("digits-cnn")
    atmc.factorize(model)
    with torch.no_grad():
        for factor in named_factors(model).values():
            factor.copy_(torch.where(factor.abs() > 0, factor.sign() * 0.25, 0.0))
            factor.view(-1)[torch.arange(factor.numel()) % 64 != seed] = 0
    return codec.encode(to_artifact(model, meta={"model": "digits-cnn"}))


def attacks(clean=0.9, pgd=0.7, eps=0.1, examples=497):
    common = {"eps": eps, "restarts": 1, "loss": "ce", "norm": "linf", "examples": examples}
    return [
        {"name": "fgsm", "steps": 1, "step_size": eps, "accuracy": (clean + pgd) / 2, **common},
        {"name": "pgd", "steps": 3, "step_size": eps / 2, "accuracy": pgd, **common},
    ]


def report(clean=0.9, worst=0.7, **more):
    """The dict of a report.json."""
    return {
        "schema": 1,
        "method": "atmc",
        "model": "digits-cnn",
        "dataset": "digits",
        "seed": 0,
        "budget_bits": 20_000,
        "bits": "auto",
        "train_attack": {"name": "pgd", "collapses": 0},
        "size": {
            "file_bits": 19_992,
            "paper_bits": 4_000,
            "dense_bits": 4_834_304,
            "nonzeros": 1_000,
            "parts": {},
        },
        "accuracy": {"clean": clean, "fgsm": (clean + worst) / 2, "pgd": worst, "worst": worst},
        "attacks": attacks(clean, worst),
        "seconds": {"train": None, "compress": 60.0, "evaluate": 2.0},
        **more,
    }


def certified(accuracy, bound="interval"):
    """What a report says of certified accuracy."""
    row = {"bound": bound, "norm": "linf", "eps": 0.1, "examples": 100, "accuracy": accuracy}
    accuracies = report()["accuracy"] | {"certified": accuracy}
    return {"accuracy": accuracies, "certified": row}


def cost(multiply_adds=100_000, latency_ms=0.05):
    """What a report says of the compact network; the network as it is takes 400,000 and 0.08 ms."""
    dense = {"parameters": 151_306, "multiply_adds": 400_000, "latency_ms": 0.08}
    compact = {"parameters": 9_000, "multiply_adds": multiply_adds, "latency_ms": latency_ms}
    return {"dense": dense, "compact": compact, "thin": [], "error": None}


def write(folder, content, name="report.json"):
    """Write a file of a run folder, and the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    text = content if isinstance(content, str) else json.dumps(content)
    (folder / name).write_text(text)
    return folder


def run(folder, *, file_bits=None, model_seed=None, config="", **more):
    """A finished run; with an artifact of ``model_seed``, if any."""
    content = report(**more)
    if model_seed is not None:
        data = artifact(model_seed)
        file_bits = 8 * len(data)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "model.atmc").write_bytes(data)
    if file_bits is not None:
        content["size"] = content["size"] | {"file_bits": file_bits}
    if config:
        write(folder, config, "config.yaml")
    return write(folder, content)


def dense(folder, seed=0, attack="pgd", clean=0.98, worst=0.85, **more):
    """A run of the dense net."""
    size = dict.fromkeys(("file_bits", "paper_bits", "nonzeros")) | {"dense_bits": 4_834_304}
    return write(
        folder,
        report(
            *(clean, worst),
            method="dense",
            bits=None,
            budget_bits=None,
            seed=seed,
            size=size,
            train_attack={"name": attack},
            **more,
        ),
    )


def failure(folder, smallest_bits=31_264, **more):
    """A point of a sweep that failed."""
    content = {
        "schema": 1,
        "method": "low-rank",
        "model": "digits-cnn",
        "dataset": "digits",
        "seed": 0,
        "budget_bits": 20_000,
        "bits": "auto",
        "error": "a budget of 20000 bits is too small",
        "smallest_bits": smallest_bits,
    }
    return write(folder, content | more, "failure.json")
