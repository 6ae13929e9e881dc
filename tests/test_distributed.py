"""Two processes that train together: the same state in both, and what happens when one ends."""

import importlib.util
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from atmc import distributed
from atmc.data.loaded import refuse_iterator
from atmc.errors import BudgetError
from atmc.training.checkpoint import Checkpoint

PROGRAM = Path(__file__).with_name("processes.py")

_spec = importlib.util.spec_from_file_location("processes", PROGRAM)
assert _spec is not None and _spec.loader is not None
processes = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(processes)


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Any], list[str]]:
    """The folder of two processes, what each found, and what they printed; the second has ended."""
    folder = tmp_path_factory.mktemp("two")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    running = [
        subprocess.Popen(
            [sys.executable, PROGRAM, folder],
            env={**os.environ, **shared, "RANK": str(rank), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in (0, 1)
    ]
    printed = []
    try:
        printed = [process.communicate(timeout=120)[0] for process in running]
    finally:
        for process in running:
            process.kill()
    assert [process.returncode for process in running] == [0, 9], printed
    found = [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in (0, 1)]
    return folder, found, printed


def assert_equal(one: Any, two: Any) -> None:
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, two)
    elif isinstance(one, dict):
        assert one.keys() == two.keys()
        for key, value in one.items():
            assert_equal(value, two[key])
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(two)
        for a, b in zip(one, two, strict=True):
            assert_equal(a, b)
    else:
        assert one == two


def test_messages(two: Any) -> None:
    _, (first, second), _ = two
    assert first["size"] == second["size"] == 2
    assert (first["share"].tolist(), second["share"].tolist()) == ([0, 1, 2, 3], [4, 5, 6])
    for facts in (first, second):
        assert facts["gathered"].tolist() == [10, 11, 12, 13, 14, 15, 16]
        assert (facts["total"], facts["from first"]) == ([2.0, 1.0], 5)
        assert facts["refused"] == "BudgetError: too small"
        assert all(not bool(tensor.any()) for tensor in facts["broadcast"])
        assert (facts["differing"], facts["alike"]) == ([1], [])


def test_both_have_the_same_state_and_about_that_of_one_process(two: Any) -> None:
    _, (first, second), printed = two
    for what in ("whole", "norm", "memory", "bounds", "part"):
        assert_equal(first[what], second[what])
    assert bool(first["memory"][1].all())
    assert len(second["losses"]) == 0
    for objective, whole, losses in (
        (processes.clean(), "whole", "losses"),
        (processes.bounds(), "bounds", "losses on bounds"),
    ):
        steps: list[Any] = []
        alone = processes.trained(processes.net(), objective, on_step=steps.append)
        # Shares of 4 and 3 examples count by their sizes.
        assert first[losses] == pytest.approx([step.loss for step in steps], rel=1e-3)
        for name, value in alone.items():
            assert torch.allclose(first[whole][name], value, atol=1e-3), name
    # The rest of one example cannot be shared; the first process says so.
    rest = "batches of fewer examples than there are processes are left out"
    assert (printed[0].count(rest), printed[1].count(rest)) == (1, 0)
    for facts in (first, second):
        assert facts["one"].startswith("ValueError: the train loader gives batches of 1, fewer")


def test_a_run_that_was_cut_in_one_process_ends_in_the_same_bytes(two: Any) -> None:
    for facts in two[1]:
        assert facts["cut"].startswith("KeyboardInterrupt")
        assert_equal(facts["whole"], facts["resumed"])
        assert_equal(*facts["noise"])
    (first, _), (second, _) = (facts["noise"] for facts in two[1])
    assert all(not torch.equal(a[:3], b[:3]) for a, b in zip(first, second, strict=True))


def test_processes_that_differ_are_told(two: Any) -> None:
    for facts in two[1]:
        assert facts["corrupted"].startswith(
            "ProcessError: the state of process 1 differs from that of the first after 8 steps of "
            "stage 'dense': go on with resume=True from the last checkpoint"
        )


def test_the_end_of_a_process_leaves_the_state_of_the_last_step(two: Any) -> None:
    folder, _, printed = two
    assert "ProcessError: another process of the run has ended: go on with" in printed[0]
    files = [Checkpoint(folder / f"{name}.pt") for name in ("expected", "left")]
    expected, left = (dict(vars(file.parse(file.read() or b""))) for file in files)
    assert (left["step"], left["processes"]) == (6, 2)
    for state in (expected, left):
        state.pop("seconds")
    assert_equal(expected, left)


def test_another_number_of_processes_does_not_resume(two: Any) -> None:
    checkpoint = Checkpoint(two[0] / "left.pt")
    before = checkpoint.path.read_bytes()
    with pytest.raises(Exception, match="is of a run by 2 processes, not by 1: start as many"):
        processes.trained(processes.net(norm=True), processes.clean(), checkpoint=checkpoint)
    assert checkpoint.path.read_bytes() == before


@pytest.mark.parametrize("alike", [False, True])
def test_one_process_shows_an_error(alike: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both processes in this one: the second fails, the first waits for it or fails, too."""
    store, error = dist.HashStore(), BudgetError("too small", 7)
    monkeypatch.setattr(distributed, "size", lambda: 2)
    monkeypatch.setattr(distributed, "_GRACE", 0.1)
    monkeypatch.setattr(distributed, "_broken", False)

    def become(rank: int) -> None:
        monkeypatch.setattr(distributed, "rank", lambda: rank)
        monkeypatch.setattr(distributed, "_membership", distributed._Membership(store))

    if alike:
        become(0)
        assert distributed.leave(error)
    become(1)
    assert distributed.leave(error) is not alike
    assert not distributed.leave(error)
    if not alike:
        become(0)
        with pytest.raises(BudgetError, match=r"^too small$") as raised, distributed.collective():
            raise RuntimeError("[gloo/transport/tcp/pair.cc] Connection closed by peer")
        assert raised.value.smallest == 7 and distributed.broken()
        assert not distributed.leave(raised.value)


def test_errors_that_are_not_of_messages_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "size", lambda: 2)
    with pytest.raises(RuntimeError, match="shapes"), distributed.collective():
        raise RuntimeError("shapes do not match")
    assert not distributed.broken()


def test_one_process_needs_no_other() -> None:
    tensor = torch.arange(3)
    with distributed.joined():
        assert (distributed.size(), distributed.rank(), distributed.is_first()) == (1, 0, True)
        assert distributed.share(tensor) is distributed.gathered(tensor) is tensor
        assert distributed.total([2.0]) == [2.0] and distributed.differing(tensor) == []
        assert distributed.averaging(torch.nn.Linear(1, 1), abs) is abs
        assert distributed.from_first(lambda: 4) == distributed.first_before_others(lambda: 4) == 4


def test_a_loader_that_shares_by_itself_is_refused() -> None:
    data = TensorDataset(torch.zeros(8, 1), torch.zeros(8))
    sampler: Any = DistributedSampler(data, num_replicas=2, rank=0)
    with pytest.raises(ValueError, match="has a DistributedSampler: leave it out"):
        refuse_iterator(DataLoader(data, sampler=sampler), "the train loader")
    whole: Any = DistributedSampler(data, num_replicas=1, rank=0)
    refuse_iterator(DataLoader(data, sampler=whole), "the train loader")
