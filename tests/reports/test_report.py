"""The four files, and what the page says."""

import gc
import json
import re
import weakref
from html.parser import HTMLParser

import pytest
from report_builders import artifact, attacks, cost, dense, failure, report, run, write

from atmc import data
from atmc.errors import MissingExtraError, ReportError
from atmc.reports import page as page_module
from atmc.reports.build import report as make

EVIL = '<img src=x onerror="pwned=1">\'&</script><script>pwned=1</script>'


@pytest.fixture(scope="module")
def reported(tmp_path_factory):
    """A folder of runs of every kind, and its report."""
    folder = tmp_path_factory.mktemp("runs")
    run(folder / "a", model_seed=0, cost=cost(123_456, 0.0621))
    run(folder / "b", seed=1, clean=0.8, worst=0.6, file_bits=19_900)
    run(folder / "evil", method=EVIL, budget_bits=9_000, file_bits=8_992)
    dense(folder / "dense")
    failure(folder / "low")
    failure(folder / "nan", method="hydra", smallest_bits=None, error=EVIL)
    write(folder / "bad", "{")
    return folder, make(folder, folder / "out" / "deeper")


def page(report):
    (file,) = [path for path in report.files if path.name == "report.html"]
    return file.read_text()


def content(html):
    """The page without the source of plotly.js."""
    return re.sub(r"<script>.*?</script>", "", html, flags=re.S)


def test_the_files(reported):
    folder, result = reported
    names = ["results.csv", "curves.png", "curves.svg", "report.html"]
    assert [path.name for path in result.files] == names
    assert sorted(path.name for path in (folder / "out" / "deeper").iterdir()) == sorted(names)
    assert (result.finished, result.failed) == (4, 2)
    (warning,) = result.warnings
    assert "bad" in warning


def test_again_over_itself_and_to_the_byte(reported):
    folder, result = reported
    before = [path.read_bytes() for path in result.files]
    again = make(folder, folder / "out" / "deeper")
    for path, old in zip(again.files, before, strict=True):
        assert path.read_bytes() == old, path


def test_the_page_tells_what_was_run(reported):
    html = content(page(reported[1]))
    assert "<h1>digits-cnn on digits</h1>" in html
    assert "4 finished, 2 failed" in html
    assert "pgd (eps 0.1, steps 3, step size 0.05, restarts 1, loss ce, 497 examples)" in html
    assert "needs 31,264 bits</td>" in html  # by budget
    assert 'is too small">needs 31,264 bits' in html  # by run
    assert "± 0.0500, 2 runs" in html
    assert "0.8500 (0.9800), not compressed" in html
    assert '<td data-value="123456">123,456</td>' in html
    assert '<td data-value="0.0621">0.0621</td>' in html
    assert '<option value="multiply_adds">multiply-adds</option>' in html
    assert "decoded file" in html
    assert "eight times the length" in html


def test_names_from_files_stay_text(reported):
    html = page(reported[1])
    assert "<img src=x" not in html
    assert html.count("</script>") == 3  # the data, plotly.js, and the page's own
    data = re.search(r'<script type="application/json" id="data">(.*?)</script>', html)[1]
    assert not set("<>&") & set(data)
    names = [series["name"] for series in json.loads(data)["groups"][0]["series"]]
    assert any(EVIL in name for name in names)


def test_the_page_asks_the_network_for_nothing(reported):
    html = content(page(reported[1]))
    assert "default-src 'none'" in html
    links = []

    class Links(HTMLParser):
        def handle_starttag(self, tag, attrs):
            links.extend(value for name, value in attrs if name in ("src", "href"))

    Links().feed(html)
    assert links
    assert all(link.startswith(("#", "data:")) for link in links), links
    assert "http:" not in html
    assert "https:" not in html


def test_runs_that_were_not_attacked_alike_are_flagged(tmp_path):
    run(tmp_path / "a")
    run(tmp_path / "b", attacks=attacks(examples=100))
    html = content(page(make(tmp_path)))
    assert "Not all runs were attacked alike" in html
    assert "2 runs share method, bits, budget and seed" in html
    assert "100 or 497" in html
    assert "No artifact lies beside the reports" in html
    assert 'id="over-0"' not in html  # there is nothing to choose
    assert "There is no artifact to attack" in html


def test_several_settings(tmp_path):
    run(tmp_path / "a")
    run(tmp_path / "b", model="other", dataset="mnist", budget_bits=None)
    failure(tmp_path / "c", model="third")
    html = content(page(make(tmp_path)))
    assert "<h1>3 models on digits, mnist</h1>" in html
    assert "other on mnist, ε = 0.1" in html
    assert "No run of these finished." in html
    assert "data set</button>" in html


def test_failures_alone(tmp_path):
    failure(tmp_path / "c", budget_bits=None)
    result = make(tmp_path)
    assert (result.finished, result.failed) == (0, 1)
    assert "No run had a budget." in page(result)


def test_without_the_data_the_page_says_so(tmp_path):
    run(tmp_path / "a", model_seed=0, dataset="mnist")
    result = make(tmp_path, data_root=str(tmp_path))
    html = content(page(result))
    message = "The data set mnist is not at hand: give its folder as data_root."
    assert result.warnings == (message,)
    assert message in html
    assert 'id="layers"' in html


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.write_bytes(artifact()[:-5]), "checksum"),
        (lambda path: run(path.parent, file_bits=800), "bits, where report.json says 800"),
        (lambda path: (path.unlink(), path.symlink_to(path)), None),
    ],
)
def test_a_damaged_artifact_is_named_and_left_out(tmp_path, damage, message):
    run(tmp_path / "a", model_seed=0)
    path = tmp_path / "a" / "model.atmc"
    damage(path)
    result = make(tmp_path)
    assert result.finished == 1
    if message is None:
        assert result.warnings == ()  # as good as not there
    else:
        (warning,) = result.warnings
        assert warning.startswith(f"{path}: ")
        assert message in warning
    assert 'id="layers"' not in page(result)


def test_an_artifact_that_cannot_be_read(tmp_path, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    run(tmp_path / "a", model_seed=0)
    monkeypatch.setattr("atmc.reports.build.read", refuse)
    (warning,) = make(tmp_path).warnings
    assert "Permission denied" in warning


def test_nothing_found(tmp_path):
    with pytest.raises(ReportError, match="there is no run in"):
        make(tmp_path)
    write(tmp_path, report(schema=7))
    with pytest.raises(ReportError, match=r"1 damaged or foreign: .*report\.json"):
        make(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["report.json"]


def test_folders_that_are_none(tmp_path):
    with pytest.raises(ReportError, match="void is no folder"):
        make(tmp_path / "void")
    run(tmp_path / "a")
    with pytest.raises(ReportError, match=r"report\.json is a file: give a folder"):
        make(tmp_path, tmp_path / "a" / "report.json")


@pytest.mark.parametrize("name", ["results.csv", "curves.png", "curves.svg", "report.html"])
def test_a_file_of_another_program_is_not_written_over(tmp_path, name):
    run(tmp_path / "runs" / "a")
    foreign = tmp_path / "runs" / name
    foreign.write_bytes(b"method,bits\natmc report,8\n")
    message = rf"{name} is a file that atmc report did not write: give another output"
    if name.startswith("curves"):
        foreign.write_bytes(b"<svg>mine</svg>")
    before = foreign.read_bytes()
    with pytest.raises(ReportError, match=message):
        make(tmp_path / "runs")
    assert foreign.read_bytes() == before
    assert len(list((tmp_path / "runs").iterdir())) == 2
    make(tmp_path / "runs", tmp_path / "elsewhere")


@pytest.mark.parametrize("package", ["matplotlib", "plotly", "jinja2"])
def test_a_missing_package_is_named(tmp_path, hide, package):
    run(tmp_path)
    hide(package)
    with pytest.raises(MissingExtraError, match=rf"needs {package}: pip install 'atmc\[report\]'"):
        make(tmp_path)


def test_data_sets_are_loaded_once_and_freed_before_the_page_is_rendered(tmp_path, monkeypatch):
    loaded = []

    def load(*args, **more):
        dataset = load_data(*args, **more)
        loaded.append(weakref.ref(dataset))
        return dataset

    def render(*args):
        gc.collect()
        assert [each() for each in loaded] == [None]
        return render_page(*args)

    load_data, render_page = data.load, page_module.render
    monkeypatch.setattr(data, "load", load)
    monkeypatch.setattr(page_module, "render", render)
    run(tmp_path / "a", model_seed=0)
    run(tmp_path / "b", model_seed=1, method="l0")
    assert 'id="sheet"' in page(make(tmp_path))


def test_why_figures_are_not_to_be_trusted_is_told_with_them(tmp_path):
    why = "the outputs are probabilities"
    run(tmp_path / "a", file_bits=8_000, warnings=[why])
    made = make(tmp_path, tmp_path / "out")
    assert [warning for warning in made.warnings if warning.endswith(why)]
    assert why in content(page(made))
    assert why in (tmp_path / "out" / "results.csv").read_text()
