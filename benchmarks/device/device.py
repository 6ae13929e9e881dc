"""A file on a microcontroller: flash, RAM, instructions and accuracy on a Cortex-M4.

    python benchmarks/device/device.py ARTIFACT [--dataset mnist] [--data FOLDER] [--images 1000]
        [--json FILE]

It exports the artifact to C, compiles that with `arm-none-eabi-gcc`, and runs it on images of the
test split under `qemu-system-arm`, which counts instructions; then compares the logits with those
of the decoded model in Python.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

import atmc
from atmc import data

HERE = Path(__file__).parent
TARGET = ["-mcpu=cortex-m4", "-mthumb", "-mfloat-abi=hard", "-mfpu=fpv4-sp-d16"]
FLAGS = ["-std=gnu99", "-ffp-contract=off", "-ffunction-sections", "-fdata-sections"]
LINK = ["--specs=nosys.specs", "--specs=nano.specs", "-nostartfiles", "-Wl,--gc-sections"]
BOARD = ["-M", "mps2-an386", "-nographic", "-monitor", "none", "-serial", "none"]
BOARD += ["-semihosting-config", "enable=on,target=native", "-icount", "shift=0"]


def built(folder: Path, level: str) -> dict[str, int]:
    """Compile the exported folder for the board; bytes of its sections."""
    compiler = ["arm-none-eabi-gcc", *TARGET, *FLAGS, level, f"-I{folder}"]
    sources = [folder / "model.c", folder / "atmc_decode.c", HERE / "board.c"]
    objects = [folder / f"{source.stem}.o" for source in sources]
    for source, compiled in zip(sources, objects, strict=True):
        subprocess.run([*compiler, "-c", source, "-o", compiled], check=True)
    link = [*compiler, *LINK, "-T", HERE / "board.ld", *objects, "-lm", "-o", folder / "board.elf"]
    subprocess.run(link, check=True)
    whole, board = (sizes(folder / name) for name in ("board.elf", "board.o"))
    return {name: whole[name] - board[name] for name in whole}


def sizes(path: Path) -> dict[str, int]:
    """Bytes of code and constants, of initialized and of other variables."""
    command = ["arm-none-eabi-size", path]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    numbers = map(int, text.splitlines()[1].split()[:3])
    return dict(zip(("text", "data", "bss"), numbers, strict=True))


def run(folder: Path, images: torch.Tensor) -> dict[str, Any]:
    """What the board says of each image; QEMU prints it on the standard error."""
    (folder / "images").write_bytes(np.ascontiguousarray(images.numpy()).tobytes())
    command = ["qemu-system-arm", *BOARD, "-kernel", "board.elf"]
    done = subprocess.run(command, cwd=folder, check=True, stderr=subprocess.PIPE, text=True)

    def numbers(name: str) -> list[int]:
        return [int(n, 16) for n in re.findall(rf"^{name} (\w+)$", done.stderr, re.MULTILINE)]

    scale = 1e6 / numbers("ticks of a million instructions")[0]
    rows = re.findall(r"^logits (.*)$", done.stderr, re.MULTILINE)
    words = np.array([[int(word, 16) for word in row.split()] for row in rows], dtype=np.uint32)
    return {
        "start": round(scale * numbers("ticks of the start")[0]),
        "image": round(scale * float(np.mean(numbers("ticks of an image")))),
        "stack": max(numbers("stack of the start") + numbers("stack of an image")),
        "logits": torch.from_numpy(words.view(np.float32)),
    }


def main() -> None:
    """The figures at two levels of optimization."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--dataset", default="mnist")
    parser.add_argument("--data", type=Path, help="folder of the data set")
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    given = parser.parse_args()
    torch.set_num_threads(1)
    test = data.load(given.dataset, given.data).test.first(given.images)
    x, y = next(iter(test.batches(given.images)))[:2]
    with torch.no_grad():
        expected = atmc.load(given.artifact)(x)
    figures: dict[str, Any] = {"artifact": given.artifact.stat().st_size, "images": len(x)}
    figures["accuracy, Python"] = float((expected.argmax(1) == y).float().mean())
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "c"
        memory = atmc.export(given.artifact, folder, "c")["memory"]
        for level in ("-Os", "-O2"):
            sections, found = built(folder, level), run(folder, x)
            flash = sections["text"] + sections["data"]
            figures[level] = {
                "flash": flash,
                "code": flash - memory["artifact"] - memory["constants"],
                "RAM": memory["ram"],
                "stack": found["stack"],
                "instructions, start": found["start"],
                "instructions, image": found["image"],
                "accuracy": float((found["logits"].argmax(1) == y).float().mean()),
                "largest difference": float((found["logits"] - expected).abs().max()),
            }
    print(json.dumps(figures, indent=2))
    if given.json is not None:
        given.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
