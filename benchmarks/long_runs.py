"""Memory and open files of long runs: 200 epochs, and a sweep of 50 points.

    python benchmarks/long_runs.py [--json FILE]

Both run as commands on the embedded digits, with all their processes watched four times a second.
The second tenth of their time, the fifth and the ninth are compared: memory may rise until the
allocator has met every size, and must not after that. (In the end a sweep draws its curves, which
loads Matplotlib.)
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

COMMON = (
    *("--dataset", "digits", "--budget-bits", "12000", "--dense-epochs", "1", "--level-epochs"),
    *("1", "--steps", "1", "--eval-steps", "2", "--eval-examples", "50", "--threads", "1"),
)
TENTHS = {"second": 1, "fifth": 4, "ninth": 8}
SWEEP = """dataset: digits
dense_epochs: 1
epochs: 1
level_epochs: 1
steps: 1
eval_steps: 2
eval_examples: 50
threads: 1
points:
  - method: [atmc, low-rank]
    seed: [0, 1, 2, 3, 4]
    budget_bits: [10000, 11000, 12000, 13000, 14000]
"""


def held(group: int) -> tuple[float, int]:
    """MiB of memory, and open files, of all processes of a group."""
    pages, files = 0, 0
    for process in Path("/proc").iterdir():
        if not process.name.isdigit():
            continue
        try:
            fields = (process / "stat").read_text().rpartition(")")[2].split()
            if int(fields[2]) == group:
                pages += int((process / "statm").read_text().split()[1])
                files += len(list((process / "fd").iterdir()))
        except OSError:  # it has just ended
            continue
    return pages * 4096 / 2**20, files


def watch(arguments: list[str]) -> dict[str, float]:
    """Run the command; what it held in some tenths of its time."""
    samples, started = [], time.monotonic()
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(
            [sys.executable, "-m", "atmc_cli", *arguments],
            stdout=subprocess.DEVNULL,
            stderr=said,
            start_new_session=True,
        )
        while process.poll() is None:
            samples.append(held(process.pid))
            time.sleep(0.25)
        if process.returncode:
            said.seek(0)
            raise RuntimeError(said.read().decode())
    tenth = len(samples) // 10
    figures: dict[str, float] = {"seconds": round(time.monotonic() - started)}
    for name, start in TENTHS.items():
        memory, files = zip(*samples[start * tenth : (start + 1) * tenth], strict=True)
        figures[f"MiB, {name} tenth"] = round(statistics.median(memory))
        figures[f"files, {name} tenth"] = statistics.median(files)
    return figures


def main() -> None:
    """Both runs."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "sweep.yaml").write_text(SWEEP)
        run = ["compress", *COMMON, "--epochs", "200", "--output", str(folder / "run")]
        sweep = ["sweep", "--config", str(folder / "sweep.yaml"), "--output", str(folder / "sweep")]
        figures = {"200 epochs": watch(run), "50 points": watch(sweep)}
    print(json.dumps(figures, indent=2))
    if given.json is not None:
        given.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
