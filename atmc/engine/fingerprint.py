"""What a run was started from, kept beside its checkpoints: another must not go on with them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from atmc.files import write


def digest(model: nn.Module) -> str:
    """SHA-256 of the values of a model, with their names, types and shapes."""
    found = hashlib.sha256()
    for name, value in model.state_dict().items():
        if is_lazy(value):
            found.update(name.encode())
        elif isinstance(value, torch.Tensor):
            found.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
            flat = value.detach().cpu().contiguous().flatten()
            found.update(flat.view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def _json(facts: dict[str, Any]) -> str:
    return json.dumps(facts, indent=2, default=lambda number: number.item())


def keep(path: Path, facts: dict[str, Any]) -> None:
    """Keep facts, of types that JSON has, or numbers of numpy."""
    write(path, (_json(facts) + "\n").encode())


def differing(path: Path, facts: dict[str, Any]) -> str | None:
    """The first fact that is not as it was kept; None where all are, or nothing was kept."""
    if not path.is_file():
        return None
    try:
        kept = json.loads(path.read_text())
    except ValueError:
        return "what was kept of it"
    now = json.loads(_json(facts))
    return next(
        (key for key in now if not isinstance(kept, dict) or kept.get(key) != now[key]), None
    )
