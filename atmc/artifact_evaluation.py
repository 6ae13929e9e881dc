"""A file evaluated: artifact or dense start, decoded, under named attacks on the test split."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from atmc import codec, data, models
from atmc.accounting import dense_bits
from atmc.artifact import from_artifact
from atmc.attacks import Loss
from atmc.compression import channels_last
from atmc.data import Batches
from atmc.evaluation import attack, evaluate
from atmc.memory import keep_freed
from atmc.run import EVALUATION_BATCH, RunError, choose_device, load_dense
from atmc.settings import parse_eps, read_config


def evaluate_artifact(
    path: Path,
    *,
    dataset: str | None = None,
    data_root: str | None = None,
    attacks: Sequence[str] = ("fgsm", "pgd"),
    eps: float | None = None,
    steps: int | None = None,
    step_size: float | None = None,
    restarts: int = 1,
    examples: int | None = None,
    loss: Loss = "ce",
    seed: int = 0,
    device: str = "auto",
) -> dict[str, Any]:
    """Clean accuracy and named attacks of an artifact's decoded model, on the test split.

    Args:
        path: the artifact, or the ``dense.safetensors`` of a run folder.
        dataset: its data set; None for that of the run folder around it, else the model's own.
        data_root: where the data lies; None for that of the run folder.
        attacks: names as :func:`atmc.evaluation.attack` takes them, run one after the other.
        eps: the ℓ∞ radius; None for the run folder's, else the data set's usual one.
        steps: of PGD; likewise.
        step_size: of PGD; None for 4/3 · ε / steps.
        restarts: of PGD.
        examples: the first so many of the test split; None for all.
        loss: of PGD, "ce" or "margin".
        seed: of the random starts.
        device: "cpu", "cuda", or "auto".

    Returns:
        ``{"accuracy", "attacks", "size"}`` as in report.json; of ``size``, what a file tells.

    Raises:
        AtmcFormatError, DataError, RunError, ValueError: see their messages.
    """
    keep_freed()
    where = choose_device(device)
    config = path.parent / "config.yaml"
    beside = read_config(config) if config.is_file() else {}
    model, size, name = _read_model(path, beside)
    if dataset is None:
        usual = models.info(name).dataset if name in models.names() else None
        dataset = beside.get("dataset") or usual
    if dataset is None:
        raise RunError("the artifact does not tell its data set: give --dataset")
    loaded = data.load(dataset, data_root if data_root is not None else beside.get("data_root"))
    if eps is None:
        eps = parse_eps(beside.get("eps", loaded.eps))
    if steps is None:
        steps = int(beside.get("eval_steps") or loaded.eval_steps)
    chosen = [
        attack(
            each,
            eps=eps,
            steps=steps,
            step_size=step_size,
            restarts=restarts,
            loss=loss,
        )
        for each in attacks
    ]
    x, y = loaded.x_test[:examples], loaded.y_test[:examples]
    measured = evaluate(model.to(where), Batches(x, y, EVALUATION_BATCH), chosen, seed=seed)
    return {**measured, "size": size}


def _read_model(
    path: Path, beside: Mapping[str, Any]
) -> tuple[nn.Module, dict[str, Any], str | None]:
    """The model in a file, its size as in report.json, and its name."""
    size: dict[str, Any] = dict.fromkeys(("paper_bits", "nonzeros", "parts"))
    if path.suffix == ".safetensors":
        name = beside.get("model")
        if name not in models.names():
            raise RunError(f"{path} lies in no run folder: its model is not known")
        model = models.create(name)
        load_dense(model, path)
    else:
        artifact = codec.decode(codec.read(path))
        name = artifact.meta.get("model")
        model = from_artifact(artifact)
        sizes = codec.measure(artifact)
        size |= {"paper_bits": sizes.paper_bits, "nonzeros": sizes.nonzeros}
        size["parts"] = dict(sizes.parts)
    size |= {"file_bits": 8 * path.stat().st_size, "dense_bits": dense_bits(model)}
    return channels_last(model.eval()), size, name
