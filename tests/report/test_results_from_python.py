"""Curves of runs that were made in Python, on a loader that no data set of ours stands behind."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import atmc
from atmc.report import report
from atmc.report.results import find


def test_results_in_folders_are_read_as_runs(tmp_path: Path) -> None:
    """As docs/SWEEPS.md says: one dense start, a folder for each result."""
    torch.manual_seed(0)
    x, y = torch.rand(48, 1, 8, 8), torch.arange(48) % 4
    loader = DataLoader(TensorDataset(x, y), batch_size=16)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 4))
    short = {"epochs": 1, "level_epochs": 0, "steps": 1, "test_loader": loader}
    start = atmc.compress(net, loader, None, 0.1, method="dense", dense_epochs=1, **short)
    assert any(  # trained, and not rounded as the file is
        not torch.equal(a, b)
        for a, b in zip(start.dense.parameters(), start.model.parameters(), strict=True)
    )
    results = [start] + [
        atmc.compress(start.dense, loader, 4000, 0.1, method=method, dense_epochs=0, **short)
        for method in ("atmc", "l0")
    ]
    for number, result in enumerate(results):
        folder = tmp_path / str(number)
        result.write(folder, dataset="mine")
        assert json.loads((folder / "report.json").read_text())["size"] == result.report["size"]
        weights = load_file(folder / "dense.safetensors")
        assert all(
            torch.equal(value, weights[name]) for name, value in start.dense.state_dict().items()
        )

    found, warnings = find(tmp_path)
    assert not warnings
    assert [(r.series, r.dataset, r.model) for r in found] == [
        ("atmc, bits auto", "mine", "Sequential"),
        ("dense", "mine", "Sequential"),
        ("l0, bits auto", "mine", "Sequential"),
    ]
    assert all(r.file_bits is not None and r.file_bits <= 4000 for r in found if not r.dense)
    made = report(tmp_path, tmp_path / "out")
    assert (made.finished, made.failed) == (3, 0)
    assert "l0, bits auto" in (tmp_path / "out" / "report.html").read_text()
