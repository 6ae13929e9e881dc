"""An artifact becomes numpy arrays in an environment that has no torch."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from atmc import codec

GOLDEN = Path(__file__).parent / "golden"

# What a device would run: the file's weights by their number, as numpy arrays.
DECODE = """
import importlib, sys
sys.path.insert(0, sys.argv[1])
for name in ("torch", "torchvision", "scipy", "sklearn", "pydantic", "click"):
    try:
        importlib.import_module(name)
    except ModuleNotFoundError:
        continue
    sys.exit(f"{name} can be imported")
import numpy as np
from atmc import codec
for module in ("numpy", "constriction", "atmc"):
    assert sys.modules[module].__file__.startswith(sys.argv[1]), module
with open(sys.argv[2], "rb") as file:
    artifact = codec.decode(file.read())
values = [entry.value for entry in artifact.entries]
np.savez(sys.argv[3], *(
    value.weight() if isinstance(value, codec.FactorizedWeight) else value.dense()
    for value in values
))
try:
    import atmc
    atmc.load
except ModuleNotFoundError as error:
    print(error.name)
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of what decoding needs and nothing else, however it is installed here."""
    folder = tmp_path_factory.mktemp("site")
    for name in ("numpy", "constriction", "atmc"):
        spec = importlib.util.find_spec(name)
        assert spec is not None and spec.submodule_search_locations
        package = Path(spec.submodule_search_locations[0]).resolve()
        (folder / name).symlink_to(package, target_is_directory=True)
        shared = package.parent / f"{name}.libs"  # the libraries that a wheel brings
        if shared.is_dir():
            (folder / shared.name).symlink_to(shared, target_is_directory=True)
    return folder


@pytest.mark.parametrize("name", ["ordered", "uneven"])
def test_decoding_needs_no_torch(name: str, site: Path, tmp_path: Path) -> None:
    file, arrays = GOLDEN / f"{name}.atmc", tmp_path / "weights.npz"
    # -I and -S: no folder of packages but the one it is given.
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", DECODE, str(site), str(file), str(arrays)],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["torch"], "the rest of atmc needs it"
    expected = [
        value.weight() if isinstance(value, codec.FactorizedWeight) else value.dense()
        for value in (entry.value for entry in codec.decode(file.read_bytes()).entries)
    ]
    with np.load(arrays) as decoded:
        assert len(decoded.files) == len(expected) > 0
        for array, key in zip(expected, decoded.files, strict=True):
            assert decoded[key].dtype == array.dtype
            np.testing.assert_array_equal(decoded[key], array)
    assert any((array != 0).any() for array in expected)
