"""The package as it is installed: what it is called, what it needs, what it puts where."""

import ast
import configparser
import importlib.metadata
import importlib.resources
import importlib.util
import re
from pathlib import Path

import pytest

import atmc

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def installed():
    try:
        return importlib.metadata.distribution("atmc")
    except importlib.metadata.PackageNotFoundError:
        pytest.fail("atmc is not installed: tests run against it, so pip install -e '.[test]'")


def requirements(installed, extra=None):
    """The names required under an extra (None: always), its own extras left in brackets."""
    found = set()
    for line in installed.requires or []:
        requirement, _, marker = line.partition(";")
        match = re.search(r"""extra\s*==\s*['"](.+?)['"]""", marker)
        if (match and match[1]) == extra:
            found.add(re.match(r"[\w.-]+(\[.*?\])?", requirement)[0].lower())
    return found


def test_only_two_names_are_installed_at_the_top_level(installed):
    assert sorted(installed.read_text("top_level.txt").split()) == ["atmc", "atmc_cli"]


def test_metadata(installed):
    metadata = installed.metadata
    assert metadata["Name"] == "atmc"
    assert metadata["Requires-Python"] == ">=3.10"
    assert "MIT" in (metadata.get("License"), metadata.get("License-Expression"))
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert (metadata.get_payload() or metadata["Description"]).startswith("# atmc")


def test_the_version_is_that_of_the_module(installed):
    assert installed.version == atmc.__version__
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    assert config["metadata"]["version"] == "attr: atmc.__version__"
    # A literal, which a build reads without importing the package, and with it torch.
    tree = ast.parse(Path(atmc.__file__).read_text())
    (value,) = (
        node.value
        for node in tree.body
        if isinstance(node, ast.Assign) and node.targets[0].id == "__version__"
    )
    assert ast.literal_eval(value) == atmc.__version__


def test_the_command_is_there(installed):
    (command,) = installed.entry_points.select(group="console_scripts")
    assert (command.name, command.value) == ("atmc", "atmc_cli.main:main")
    assert callable(command.load())


def test_what_lies_beside_the_code_is_installed_with_it():
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    named = {
        f"{package.replace('.', '/')}/{name.strip()}"
        for package, names in config["options.package_data"].items()
        for name in names.split(",")
    }
    found = {path.relative_to(ROOT).as_posix() for path in (ROOT / "atmc").rglob("*.*")}
    beside = {name for name in found if not name.endswith((".py", ".pyc")) and "/__" not in name}
    assert beside == named - {"atmc_cli/py.typed"}


@pytest.mark.parametrize("package", ["atmc", "atmc_cli"])
def test_both_packages_are_typed(installed, package):
    assert importlib.resources.files(package).joinpath("py.typed").is_file()


@pytest.mark.parametrize("module", ["atmc.codec", "atmc.data", "atmc.methods", "atmc.models"])
def test_subpackages_are_installed(installed, module):
    assert importlib.util.find_spec(module).origin.endswith("__init__.py")


def test_heavy_dependencies_are_extras(installed):
    core = requirements(installed)
    assert {"torch", "numpy", "click", "constriction"} <= core
    extras = {
        "eval": {"adversarial-robustness-toolbox", "pyautoattack"},
        "report": {"matplotlib", "plotly", "jinja2"},
        "onnx": {"onnx", "onnxruntime", "onnxscript"},
        "ray": {"ray"},
    }
    for extra, expected in extras.items():
        assert requirements(installed, extra) == expected
        assert not core & expected
    # builders put the names in brackets in an order of their own
    (everything,) = requirements(installed, "all")
    assert set(re.findall(r"\w+", everything)) == {"atmc", *extras}
    assert {"pytest", "hypothesis"} <= requirements(installed, "test")
    assert set(installed.metadata.get_all("Provides-Extra")) == {
        *extras,
        *("all", "dev", "docs", "lint", "test"),
    }


def test_the_oldest_versions_are_the_bounds_of_the_package() -> None:
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    extras = config["options.extras_require"]
    needed = [config["options"]["install_requires"]]
    needed += [extras[name] for name in ("eval", "report", "onnx", "ray", "test")]
    bounds = re.findall(r"^([\w-]+)(?:\[\w+\])?>=([\d.]+)", "\n".join(needed), re.MULTILINE)
    oldest = (ROOT / "requirements/oldest.txt").read_text()
    pins = re.findall(r"^([\w-]+)==([\d.]+)$", oldest, re.MULTILINE)
    assert len(bounds) > 25
    assert {name.lower(): _release(v) for name, v in bounds} == {
        name.lower(): _release(v) for name, v in pins
    }


def _release(version: str) -> list[int]:
    """The numbers of a version, without zeros at the end."""
    numbers = [int(part) for part in version.split(".")]
    while numbers[-1:] == [0]:
        numbers.pop()
    return numbers
