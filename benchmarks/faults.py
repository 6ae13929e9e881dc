"""Faults of the machine: processes killed, disks full, files damaged, folders shared.

    python benchmarks/faults.py [CAMPAIGN ...] [--runs N] [--json FILE]

Campaigns, all by default: kills, sweeps, full, limits, read-only, damaged, moved, shared, workers.
Each run is the command in a process of its own, on the embedded digits, with a checkpoint twice a
second. After each fault the run must end in one line and exit status 1, or not at all; the run must
then go on to the bytes of a run that nothing happened to, in a folder where nothing else is left.
Full disks and read-only folders are file systems in memory, which root alone can mount: without it
they are left out, and said to be.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

METHODS = ("atmc", "admm-irregular", "low-rank", "hydra")
_CHILD = """
from atmc.training.loop import Trainer
Trainer.__init__.__kwdefaults__["every_seconds"] = 0.5
from atmc_cli.main import main
main()
"""
_SHORT = (
    *("--dataset", "digits", "--budget-bits", "12000", "--dense-epochs", "2", "--epochs", "3"),
    *("--level-epochs", "2", "--steps", "2", "--eval-steps", "2", "--eval-examples", "50"),
    *("--threads", "1"),
)
_PROGRESS = re.compile(r"[a-z-]+ epoch \d+: |\[\d+/\d+\] ")
_SWEEP = """dataset: digits
dense_epochs: 2
epochs: 2
level_epochs: 1
steps: 2
eval_steps: 2
eval_examples: 50
threads: 1
points:
  - {method: [atmc, hydra], budget_bits: [9000, 12000]}
"""


class FaultError(Exception):
    """What should not have happened."""


def start(arguments: Sequence[object], limit: int | None = None) -> subprocess.Popen[str]:
    """The command in a new group of processes; ``limit`` is the largest file it may write."""

    def confine() -> None:
        import resource

        if limit is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    return subprocess.Popen(
        [sys.executable, "-c", _CHILD, *map(str, arguments)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=confine,
    )


def ends(process: subprocess.Popen[str]) -> tuple[int, str]:
    """The exit status, and what was said on the standard error, but for the progress."""
    lines = process.communicate()[1].splitlines()
    return process.returncode, "\n".join(line for line in lines if not _PROGRESS.match(line))


def finish(*arguments: object) -> None:
    """The command must succeed."""
    status, said = ends(start(arguments))
    if status != 0:
        raise FaultError(f"exit status {status}: {said}")


def fails(*arguments: object, limit: int | None = None) -> str:
    """The command must end in one line and exit status 1; that line."""
    status, said = ends(start(arguments, limit))
    if status != 1 or "\n" in said or not said.startswith("Error: "):
        raise FaultError(f"exit status {status}: {said}")
    return said


def kill(process: subprocess.Popen[str], after: float) -> bool:
    """Kill it and all that it started after some seconds; whether it was still at work."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(after)
    alive = process.poll() is None
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    return alive


def content(folder: Path) -> dict[str, bytes]:
    """The files of a run or a sweep by name, without times; a file that is left over is a fault."""
    files = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.name.endswith((".tmp", ".lock", ".process.json")):
            raise FaultError(f"{name} is left over")
        if path.name == "report.json":
            report = json.loads(path.read_bytes())
            report = {k: v for k, v in report.items() if k not in ("seconds", "cost")}
            files[name] = json.dumps(report).encode()
        elif path.suffix in (".atmc", ".safetensors", ".yaml") and "tfevents" not in path.name:
            # The runs of a sweep name their dense start by its path.
            files[name] = path.read_bytes().replace(bytes(folder), b"")
    return files


class Campaign:
    """Runs with a fault, each compared with one without."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder = folder
        self.rng = random.Random(seed)
        self._whole: dict[str, tuple[dict[str, bytes], float]] = {}
        self.kills = 0

    def run(self, method: str = "atmc", seed: int = 0) -> tuple[object, ...]:
        """The arguments of a run but its folder."""
        return "compress", *_SHORT, "--method", method, "--seed", seed

    def whole(self, method: str = "atmc", seed: int = 0) -> tuple[dict[str, bytes], float]:
        """The files, and the seconds, of a run without a fault."""
        return self._undisturbed(f"{method}-{seed}", self.run(method, seed))

    def _undisturbed(
        self, name: str, command: tuple[object, ...]
    ) -> tuple[dict[str, bytes], float]:
        if name not in self._whole:
            folder, started = self.folder / f"whole-{name}", time.monotonic()
            finish(*command, "--output", folder)
            self._whole[name] = content(folder), time.monotonic() - started
        return self._whole[name]

    def same(self, folder: Path, expected: dict[str, bytes]) -> None:
        """The run in a folder must have ended in these files."""
        found = content(folder)
        names = {n for n in {*found, *expected} if found.get(n) != expected.get(n)}
        if names:
            raise FaultError(f"{', '.join(sorted(names))} differ")
        shutil.rmtree(folder)

    def resume(self, folder: Path, method: str = "atmc", seed: int = 0) -> None:
        """A run goes on to the bytes of one without a fault."""
        finish(*self.run(method, seed), "--output", folder, *resumed(folder))
        self.same(folder, self.whole(method, seed)[0])

    def sweep(self, folder: Path) -> tuple[object, ...]:
        """The arguments of a sweep."""
        config = self.folder / "sweep.yaml"
        config.write_text(_SWEEP)
        return "sweep", "--config", config, "--output", folder, "--jobs", 2

    # ---- one fault each, by the number of the run

    def kills_of(self, number: int) -> None:
        """Killed one to three times at any moment."""
        method, folder = METHODS[number % len(METHODS)], self.folder / "killed"
        seconds = self.whole(method)[1]
        for _ in range(self.rng.randint(1, 3)):
            command = (*self.run(method), "--output", folder, *resumed(folder))
            self.kills += kill(start(command), self.rng.uniform(1.0, seconds))
        self.resume(folder, method)

    def sweeps_of(self, number: int) -> None:
        """A sweep with two jobs, killed with its workers."""
        folder, whole = self.folder / "sweep", self.folder / "whole-sweep"
        expected, seconds = self._undisturbed("sweep", self.sweep(whole)[:-4])
        for _ in range(self.rng.randint(1, 3)):
            self.kills += kill(start(self.sweep(folder)), self.rng.uniform(1.0, seconds))
        finish(*self.sweep(folder))
        self.same(folder, expected)

    def workers_of(self, number: int) -> None:
        """A sweep one of whose workers is killed: it says so, and goes on when it is run again."""
        folder = self.folder / "sweep"
        expected, seconds = self._undisturbed("sweep", self.sweep(self.folder / "whole-sweep")[:-4])
        process = start(self.sweep(folder))
        moment = time.monotonic() + self.rng.uniform(0.1, 0.4) * seconds
        # Workers are forked from a server, and are each a group of their own.
        busy: list[int] = []
        while process.poll() is None and (not busy or time.monotonic() < moment):
            time.sleep(0.1)
            servers = found("-g", process.pid, "-f", "forkserver")
            busy = [worker for server in servers for worker in found("-P", server)]
        if busy:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.rng.choice(busy), signal.SIGKILL)
                self.kills += 1
        status, said = ends(process)
        if status not in (0, 1) or "Traceback" in said:
            raise FaultError(f"exit status {status}: {said}")
        if status == 1:
            finish(*self.sweep(folder))
        self.same(folder, expected)

    def limits_of(self, number: int) -> None:
        """No file may be larger than so many bytes."""
        folder = self.folder / "limited"
        largest = max(map(len, self.whole()[0].values()))
        limit = round(10 ** self.rng.uniform(2.5, 1 + len(str(largest))))
        status, said = ends(start((*self.run(), "--output", folder), limit))
        self._stopped(status, said)
        self.resume(folder)

    def full_of(self, number: int) -> None:
        """A disk of so many bytes."""
        with mounted(self.folder / "disk", round(10 ** self.rng.uniform(3.7, 6.6))) as disk:
            folder = disk / "run"
            status, said = ends(start((*self.run(), "--output", folder)))
            self._stopped(status, said)
            remount(disk, "size=100m")
            self.resume(folder)

    def read_only_of(self, number: int) -> None:
        """A folder that cannot be written to any more, from some moment on."""
        with mounted(self.folder / "disk", 10**8) as disk:
            folder = disk / "run"
            process = start((*self.run(), "--output", folder))
            time.sleep(self.rng.uniform(0, self.whole()[1]))
            with contextlib.suppress(subprocess.CalledProcessError):  # a file is open just now
                remount(disk, "ro")
            status, said = ends(process)
            self._stopped(status, said)
            if not os.access(disk, os.W_OK) and not (folder / "report.json").exists():
                fails(*self.run(), "--output", folder, *resumed(folder))
            remount(disk, "rw")
            self.resume(folder)

    def _stopped(self, status: int, said: str) -> None:
        if status != 0 and (status != 1 or "\n" in said or not said.startswith("Error: ")):
            raise FaultError(f"exit status {status}: {said}")

    def damaged_of(self, number: int) -> None:
        """A checkpoint that is damaged, empty, of another run, or no file."""
        folder = self.cut("atmc", 0)
        names = [p for p in (folder / "checkpoints").glob("*.pt")]
        path = self.rng.choice(names)
        how = ("flipped", "cut", "empty", "swapped", "earlier", "fifo")[number % 6]
        data = bytearray(path.read_bytes())
        path.unlink()
        if how == "flipped":
            data[self.rng.randrange(len(data))] ^= 1 << self.rng.randrange(8)
            path.write_bytes(data)
        elif how == "fifo":
            os.mkfifo(path)
        elif how == "swapped":
            other = self.cut("atmc", 1)
            found = other / "checkpoints" / path.name
            shutil.copy(found if found.exists() else other / "model.atmc", path)
            shutil.rmtree(other)
        else:
            path.write_bytes({"cut": data[: len(data) // 2], "empty": b"", "earlier": b"PK"}[how])
        command = (*self.run(), "--output", folder, "--resume")
        status, said = ends(start(command))
        used = path.name == "compress.pt" or not (folder / "dense.safetensors").exists()
        if used:
            if status != 1 or "\n" in said or f"Error: the checkpoint {path} " not in said:
                raise FaultError(f"{how} {path.name}: exit status {status}: {said}")
            finish(*self.run(), "--output", folder, "--overwrite")
        elif status != 0:
            raise FaultError(f"{how} {path.name}: exit status {status}: {said}")
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
        self.same(folder, self.whole()[0])

    def cut(self, method: str, seed: int) -> Path:
        """The folder of a run that was killed after its first checkpoint."""
        folder = self.folder / f"cut-{method}-{seed}"
        for _ in range(50):
            shutil.rmtree(folder, ignore_errors=True)
            after = self.whole(method, seed)[1] * self.rng.uniform(0.5, 0.9)
            kill(start((*self.run(method, seed), "--output", folder)), after)
            if (
                list((folder / "checkpoints").glob("*.pt"))
                and not (folder / "report.json").exists()
            ):
                return folder
        raise FaultError("no run could be cut between its checkpoints and its report")

    def moved_of(self, number: int) -> None:
        """The folder is moved, and the run goes on there."""
        folder, moved = self.cut(METHODS[number % len(METHODS)], 0), self.folder / "moved"
        folder.rename(moved)
        self.resume(moved, METHODS[number % len(METHODS)])

    def shared_of(self, number: int) -> None:
        """Two runs of other seeds in one folder at once: one is refused, or comes after."""
        folder = self.folder / "shared"
        finish(*self.run(seed=2), "--output", folder)
        processes = []
        for seed in (0, 1):
            processes.append(start((*self.run(seed=seed), "--output", folder, "--overwrite")))
            time.sleep(self.rng.choice([0, 0.05, 0.5, 2]))
        results = [ends(process) for process in processes]
        for status, said in results:
            self._stopped(status, said)
        won = [seed for seed, (status, _) in enumerate(results) if status == 0]
        if not won:
            raise FaultError(f"neither run ended well: {results}")
        seed = int(re.search(r"^seed: (\d+)", (folder / "config.yaml").read_text(), re.M)[1])
        if seed not in won:
            raise FaultError(f"the config is of seed {seed}, the runs of {won} ended")
        self.same(folder, self.whole(seed=seed)[0])


def found(*conditions: object) -> list[int]:
    """The processes that pgrep finds."""
    command = ["pgrep", *map(str, conditions)]
    text = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    return [int(pid) for pid in text.split()]


def resumed(folder: Path) -> tuple[str, ...]:
    """--resume where a run has begun."""
    return ("--resume",) if (folder / "config.yaml").exists() else ()


@contextlib.contextmanager
def mounted(folder: Path, size: int) -> Iterator[Path]:
    """A file system in memory of so many bytes."""
    folder.mkdir(exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    subprocess.run(command, check=True, capture_output=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True, capture_output=True)


def remount(folder: Path, option: str) -> None:
    """Change an option of a file system."""
    command = ["mount", "-o", f"remount,{option}", str(folder)]
    subprocess.run(command, check=True, capture_output=True)


RUNS: dict[str, int] = {
    "kills": 80,
    "sweeps": 20,
    "full": 20,
    "limits": 20,
    "read-only": 10,
    "damaged": 12,
    "moved": 4,
    "shared": 8,
    "workers": 4,
}


def campaign(name: str, runs: int, folder: Path) -> dict[str, Any]:
    """The counts of a campaign, and its faults."""
    all_of = Campaign(folder, seed=sum(map(ord, name)))
    one: Callable[[int], None] = getattr(all_of, f"{name.replace('-', '_')}_of")
    faults = []
    for number in range(runs):
        try:
            one(number)
        except FaultError as error:
            faults.append(f"run {number}: {error}")
            print(f"{name}, run {number}: {error}", flush=True)
            for path in folder.iterdir():
                if path.is_dir() and not path.name.startswith("whole-"):
                    shutil.rmtree(path, ignore_errors=True)
    return {"runs": runs, "same bytes at the end": runs - len(faults), "faults": faults} | (
        {"kills": all_of.kills} if all_of.kills else {}
    )


def main() -> None:
    """The campaigns that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("campaigns", nargs="*", choices=[*RUNS, []], metavar="CAMPAIGN")
    parser.add_argument("--runs", type=int, help="of each campaign")
    parser.add_argument("--json", type=Path, help="write the counts to this file, added to it")
    given = parser.parse_args()
    counts: dict[str, Any] = {}
    if given.json is not None and given.json.exists():
        counts = json.loads(given.json.read_text())
    for name in given.campaigns or RUNS:
        if name in ("full", "read-only") and os.geteuid() != 0:
            print(f"{name}: left out, root alone can mount a file system")
            continue
        started = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            counts[name] = campaign(name, given.runs or RUNS[name], Path(folder))
        counts[name]["seconds"] = round(time.monotonic() - started)
        print(name, json.dumps(counts[name]), flush=True)
        if given.json is not None:
            given.json.write_text(json.dumps(counts, indent=2) + "\n")


if __name__ == "__main__":
    main()
