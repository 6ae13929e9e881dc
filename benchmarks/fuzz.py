"""Hostile files: the decoder in C under coverage-guided fuzzing, and beside that in Python.

    python benchmarks/fuzz.py --corpus FOLDER [--executions 10000000] [--compare 1000000]
        [--jobs 2] [--json FILE]

It needs clang with its libFuzzer, and the tests of this repository, whose drivers it builds. All
files have a checksum that is right, so that decoding goes past it. First libFuzzer runs with the
address and the undefined-behaviour sanitizer: a crash, more than a second for a file, or more than
64 MiB in one piece ends it. Then files of small networks are damaged, or made of what damaged ones
stand for: both decoders must give the same, or both must refuse.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
from atmc import codec
from atmc.errors import AtmcFormatError
from tests.exporters.c import decoders

FUZZER = ["clang", "-DFUZZ", "-g", "-O2", "-fsanitize=fuzzer,address,undefined"]
LIMITS = ["-timeout=1", "-rss_limit_mb=1024", "-malloc_limit_mb=64", "-max_len=1024"]
BATCH = 1000
SMALL = 400  # bytes of the files that are changed
ELEMENTS = 1 << 16
MEMORY = 4 << 30  # bytes that the decoder in Python may take, with all that is loaded


def fuzz(corpus: Path, executions: int, jobs: int) -> dict[str, Any]:
    """The counts of libFuzzer; its findings lie in the folder of the corpus."""
    corpus.mkdir(parents=True, exist_ok=True)
    for number, data in enumerate(decoders.small_files()):
        (corpus / f"start-{number}").write_bytes(data[8:])
    with tempfile.TemporaryDirectory() as folder:
        program = decoders.build(Path(folder), [*FUZZER, "-fno-sanitize-recover=all"])
        command = [program, corpus, f"-artifact_prefix={corpus.resolve()}.", *LIMITS]
        command += ["-print_final_stats=1", "-verbosity=0", f"-runs={-(-executions // jobs)}"]
        started = time.monotonic()
        running = [
            subprocess.Popen([*command, f"-seed={job + 1}"], stderr=subprocess.PIPE, text=True)
            for job in range(jobs)
        ]
        said = [process.communicate()[1] for process in running]
    for process, text in zip(running, said, strict=True):
        if process.returncode:
            print(text[-4000:])
    found = [re.findall(r"stat::number_of_executed_units:\s*(\d+)", text) for text in said]
    return {
        "executions": sum(int(numbers[0]) for numbers in found if numbers),
        "corpus": len(list(corpus.iterdir())),
        "findings": sum(process.returncode != 0 for process in running),
        "seconds": round(time.monotonic() - started),
    }


def damaged(seed: int) -> Iterator[bytes]:
    """Files as a stranger might make them."""
    rng = np.random.default_rng(seed)
    starts = [data for data in decoders.small_files() if len(data) < SMALL]
    while True:
        data = starts[rng.integers(len(starts))]
        yield decoders.sealed(decoders.changed(rng, data[8:]))
        again = decoders.resealed(decoders.changed(rng, data))
        if again is not None:
            yield again


def compared(program: Path, seed: int) -> tuple[Counter[str], float]:
    """A batch: how many files were sound, and the longest that Python took for one."""
    files = list(islice(damaged(seed), BATCH))
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    resource.setrlimit(resource.RLIMIT_AS, (hard, hard))
    answers = decoders.run([program], files, limit=ELEMENTS)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, hard))
    counts: Counter[str] = Counter(files=len(files))
    longest = 0.0
    for data, answer in zip(files, answers, strict=True):
        started = time.perf_counter()
        try:
            artifact = codec.decode(data, max_elements=ELEMENTS)
        except AtmcFormatError:
            artifact = None
        longest = max(longest, time.perf_counter() - started)
        sound = answer[0] == decoders.END
        if artifact is None:
            same = not sound or decoders.bad_text(answer)
        else:
            words = decoders.artifact_words(data, artifact)
            same = sound and np.array_equal(answer[1:-1], words)
        counts["sound"] += artifact is not None
        if not same:
            counts["differ"] += 1
            print(f"batch {seed}: they differ on {data.hex()}", flush=True)
    return counts, longest


def compare(files: int, jobs: int) -> dict[str, Any]:
    """The counts of both decoders on the same files."""
    counts: Counter[str] = Counter(sound=0, differ=0)
    longest, started = 0.0, time.monotonic()
    with (
        tempfile.TemporaryDirectory() as folder,
        ProcessPoolExecutor(jobs, get_context("forkserver")) as pool,
    ):
        program = decoders.build(Path(folder), ["clang", *decoders.SANITIZERS])
        for batch, seconds in pool.map(partial(compared, program), range(-(-files // BATCH))):
            counts += batch
            longest = max(longest, seconds)
    seconds = round(time.monotonic() - started)
    return {"sound": 0, "differ": 0, **counts, "longest": round(longest, 3), "seconds": seconds}


def main() -> None:
    """Both campaigns."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--corpus", type=Path, required=True, help="folder of libFuzzer's inputs")
    parser.add_argument("--executions", type=int, default=10_000_000)
    parser.add_argument("--compare", type=int, default=1_000_000, help="files for both decoders")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--json", type=Path, help="write the counts to this file")
    given = parser.parse_args()
    counts = {}
    if given.executions:
        counts["fuzzing"] = fuzz(given.corpus, given.executions, given.jobs)
        print(json.dumps(counts["fuzzing"]), flush=True)
    if given.compare:
        counts["both decoders"] = compare(given.compare, given.jobs)
        print(json.dumps(counts["both decoders"]), flush=True)
    if given.json is not None:
        given.json.write_text(json.dumps(counts, indent=2) + "\n")


if __name__ == "__main__":
    main()
