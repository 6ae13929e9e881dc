"""``report.html`` in a real browser: what is drawn, and that it can be worked with."""

import os

import chromium
import pytest
from report_builders import cost, dense, failure, run

from atmc.reports.build import report

# Where one is required, a missing browser is a failure and no skip.
REQUIRED = os.environ.get("ATMC_TEST_BROWSER") == "required"
pytestmark = pytest.mark.skipif(
    chromium.find() is None and not REQUIRED, reason="there is no Chromium"
)

EVIL = '<img src="x" onerror="window.pwned=1"><b>l0</b>'
PLOT = "document.getElementById('curves-0')"
TABLE = "document.getElementById('table')"


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The page of three series, two budgets and two seeds, a dense line and two failures."""
    assert chromium.find() is not None, "there is no Chromium, and one is required"
    folder = tmp_path_factory.mktemp("runs")
    for s, (method, bits) in enumerate((("atmc", "auto"), ("atmc", 4), (EVIL, 32))):
        for budget in (10_000, 40_000):
            for seed in (0, 1):
                clean = 0.6 + budget / 2e5 + 0.03 * s + 0.02 * seed
                run(
                    folder / f"{s}-{budget}-{seed}",
                    **{"method": method, "bits": bits, "budget_bits": budget, "seed": seed},
                    **{"clean": clean, "worst": clean - 0.2, "file_bits": budget - 8 * (s + seed)},
                    cost=cost(200_000 - budget + 1_000 * seed) if s else None,
                )
    run(folder / "with-artifact", method="nat-prune", bits=4, budget_bits=30_000, model_seed=0)
    names = [f"figure {EVIL} {i}" for i in range(10)]
    more = {"bits": 8, "budget_bits": 30_000, "model_seed": 1, "clean": 0.95, "class_names": names}
    run(folder / "with-another", method="nat-prune", **more)
    dense(folder / "dense", cost=cost(400_000))
    failure(folder / "low")
    failure(folder / "nan", method="hydra", smallest_bits=None, error=EVIL)
    report(folder)
    browser = chromium.Page(tmp_path_factory.mktemp("profile"))
    try:
        browser.open(folder / "report.html")
        yield browser
    finally:
        browser.close()


@pytest.fixture(autouse=True)
def nothing_went_wrong(page):
    """After every test: no error of a script, and nothing asked of the network."""
    yield
    assert page.errors == []
    asked = {url.partition(":")[0] for url in page.requests}
    assert asked <= {"file", "data", "blob"}
    assert sum(url.startswith("file:") for url in page.requests) == 1


def visible(page):
    """By series: whether its traces are shown, all of them being alike in that."""
    pairs = page.run(f"{PLOT}.data.map(t => [t.legendgroup, t.visible ?? true])")
    shown_by_name = {}
    for name, shown in pairs:
        assert shown_by_name.setdefault(name, shown) == shown
    return shown_by_name


def column(page, name):
    """What a column of the table of runs shows, from top to bottom."""
    return page.run(
        f"(() => {{ const i = [...{TABLE}.tHead.rows[0].cells]"
        f".findIndex(c => c.textContent === '{name}');"
        f" return [...{TABLE}.tBodies[0].rows].map(r => r.cells[i].textContent); }})()"
    )


def head(name):
    return f"[...{TABLE}.tHead.querySelectorAll('button')].find(b => b.textContent === '{name}')"


def figures(cells):
    return [None if cell == "–" else int(cell.replace(",", "")) for cell in cells]


def test_the_curves_are_drawn(page):
    # Band, runs and mean of three series, the mean alone of two of one run, and the dense line:
    # twice.
    assert page.run(f"{PLOT}.data.length") == 2 * (3 * 3 + 2 + 1)
    for plot in ("xy", "x2y2"):
        paths = f"{PLOT}.querySelectorAll('.subplot.{plot} .scatterlayer .trace').length"
        assert page.run(paths) == 3 * 3 + 2 + 1
    assert page.run(f"{PLOT}.querySelectorAll('.legendtoggle').length") == 6
    assert page.run(f"[{PLOT}.layout.xaxis.type, {PLOT}.layout.xaxis2.type]") == ["log", "log"]


def test_a_click_on_the_legend_hides_a_method_in_both_plots(page):
    before = visible(page)
    assert set(before.values()) == {True}
    page.click(f"{PLOT}.querySelector('.legendtoggle')")
    page.wait(f"{PLOT}.data.some(t => t.visible === 'legendonly')")
    after = visible(page)
    assert sorted(map(str, after.values())) == ["True"] * 5 + ["legendonly"]
    axes = f"{PLOT}.data.filter(t => t.visible === 'legendonly').map(t => t.xaxis)"
    assert set(page.run(axes)) == {"x", "x2"}
    page.run("new Promise(done => setTimeout(done, 400))")  # or it would be a double click
    page.click(f"{PLOT}.querySelector('.legendtoggle')")
    page.wait(f"{PLOT}.data.every(t => t.visible !== 'legendonly')")


def test_pointing_at_a_run_names_it_with_its_figures(page):
    # A run with no other of its method and budget stands on its own: 30,000 bits, 4 bits a value.
    traces = f"[...{PLOT}.querySelectorAll('.subplot.xy .scatterlayer .trace')]"
    its = "e => e.__data__[0].trace.name === 'nat-prune, 4 bits'"
    page.point(f"{traces}.find({its}).querySelector('.point')")
    hover_text = f"{PLOT}.querySelector('.hoverlayer').textContent"
    page.wait(f"{hover_text}.includes('with-artifact')")
    for word in ("nat-prune, 4 bits, seed 0", "file bits", "paper bits", "clean 0.9", "worst 0.7"):
        assert word in page.run(hover_text)


def test_another_attack_on_the_right(page):
    y = f"{PLOT}.data.find(t => t.xaxis === 'x2' && t.meta === 'mean').y[0]"
    before = page.run(y)
    page.run(
        "(() => { const c = document.getElementById('robust-0'); c.value = 'fgsm';"
        " c.dispatchEvent(new Event('change')); })()"
    )
    assert page.run(y) == pytest.approx(before + 0.1)
    titles = page.run(f"{PLOT}.layout.annotations.map(a => a.text)")
    assert titles == ["clean accuracy", "robust accuracy, fgsm"]


def test_over_multiply_adds(page):
    """Of the runs that have them; the choice of the robust accuracy stays."""
    choose = (
        "(() => {{ const c = document.getElementById('over-0'); c.value = '{}';"
        " c.dispatchEvent(new Event('change')); }})()"
    )
    means = f"{PLOT}.data.filter(t => t.meta === 'mean' && t.xaxis === 'x' && t.x.length)"
    ranges = f"[{PLOT}.layout.xaxis.range, {PLOT}.layout.xaxis2.range]"
    before, titles = page.run(ranges), f"{PLOT}.layout.annotations.map(a => a.text)"
    robust = page.run(titles)
    page.run(choose.format("multiply_adds"))
    try:
        names = page.run(f"{means}.map(t => t.legendgroup)")
        assert names == [f"{EVIL}, 32 bits", "atmc, 4 bits"]
        assert page.run(f"{means}.map(t => t.x)") == [[190_500, 160_500]] * 2
        label = "multiply-adds of the compact network, for one example"
        assert page.run(f"{PLOT}.layout.xaxis.title.text") == label
        low, high = (10**power for power in page.run(f"{PLOT}.layout.xaxis.range"))
        assert 140_000 < low < 160_000 and 191_000 < high < 210_000
        shown = page.run(f"[...{PLOT}.querySelectorAll('.xtick text')].map(t => t.textContent)")
        assert {"160 k", "170 k", "180 k", "190 k"} <= set(shown)
        assert page.run(titles) == robust
        hover = f"{means}[0].text[0]"
        assert "190,500 multiply-adds" in page.run(hover)
        texts = f"{PLOT}.data.find(t => t.meta === 'runs' && t.x.length).text[0]"
        assert "multiply-adds, 0.05 ms" in page.run(texts)
        line = f"{PLOT}.data.find(t => t.meta === 'dense')"
        least, template = page.run(f"[Math.min(...{line}.x), {line}.hovertemplate]")
        assert least == pytest.approx(low) and "400,000 dense multiply-adds" in template
    finally:
        page.run(choose.format("file_bits"))
    assert page.run(ranges) == before


def test_the_table_sorts_by_click(page):
    known = sorted(bits for bits in figures(column(page, "file bits")) if bits is not None)
    assert len(known) == 14
    page.click(head("file bits"))
    assert figures(column(page, "file bits")) == [*known, None, None, None]
    page.click(head("file bits"))
    assert figures(column(page, "file bits")) == [*known[::-1], None, None, None]
    state = f"[...{TABLE}.tHead.rows[0].cells].map(c => c.getAttribute('aria-sort'))"
    assert [each for each in page.run(state) if each] == ["descending"]


def test_the_table_sorts_by_keyboard(page):
    page.run(f"{head('method')}.focus()")
    page.press("Enter")
    methods = column(page, "method")
    assert methods[0] == EVIL
    assert methods[-1] == "nat-prune"
    page.press("Tab")
    page.press("Enter")
    assert column(page, "bits")[:3] == ["auto"] * 3
    assert page.run("document.activeElement.textContent") == "bits"


def test_cells_that_were_out_of_reach_say_so(page):
    cells = page.run("[...document.querySelectorAll('#budgets td')].map(c => c.textContent)")
    assert "needs 31,264 bits" in cells
    assert "failed" in cells
    assert "needs 31,264 bits" in column(page, "status")


def test_where_the_bits_went(page):
    total = (
        "(() => { const p = document.getElementById('layers');"
        " return [p.data.length, p.data.flatMap(t => t.x).reduce((a, b) => a + b),"
        " p.querySelectorAll('.barlayer .point').length]; })()"
    )
    assert page.run("document.getElementById('layers-run').options.length") == 2
    traces, bits, drawn = page.run(total)
    assert (traces, drawn) == (5, 25)
    assert f"{bits:,}" in page.run("document.getElementById('layers-run').selectedOptions[0].text")
    page.run(
        "(() => { const c = document.getElementById('layers-kind'); c.value = 'factors';"
        " c.dispatchEvent(new Event('change')); })()"
    )
    assert page.run(total)[1] == bits
    names = page.run("document.getElementById('layers').data.map(t => t.name)")
    assert names == ["U", "V", "C", "dense part", "file header"]


def test_adversarial_examples(page):
    count = "document.querySelectorAll('#sheet figure').length"
    assert page.run(count) == 8
    page.wait(
        "[...document.querySelectorAll('#sheet img')].every(i => i.complete && i.naturalWidth)"
    )
    assert "PGD with 3 steps" in page.run("document.getElementById('sheet-settings').textContent")
    shown = "document.getElementById('sheet').textContent"
    assert "true 0" in page.run(shown)
    page.run(
        "(() => { const c = document.getElementById('sheet-run'); c.value = '1';"
        " c.dispatchEvent(new Event('change')); })()"
    )
    assert page.run(count) == 8
    assert f"true figure {EVIL} 0 · before figure {EVIL} " in page.run(shown)


def test_names_from_files_are_text(page):
    assert page.run("window.pwned === undefined && !document.querySelector('img[src=x]')")
    legend = page.run(f"[...{PLOT}.querySelectorAll('.legendtext')].map(t => t.textContent)")
    assert f"{EVIL}, 32 bits" in legend


def test_nothing_offers_to_send_the_figures_away(page):
    titles = "[...document.querySelectorAll('.modebar-btn')].map(b => b.dataset.title)"
    offered = page.run(titles)
    assert offered
    assert not [title for title in offered if "hare" in title or "loud" in title]


def test_narrow_and_dark(page):
    page.dark()
    page.resize(420, 900)
    try:
        page.wait(f"{PLOT}.querySelector('.main-svg').clientWidth <= 420")
        assert page.run("document.documentElement.scrollWidth") <= 420
        # One plot above the other now.
        page.wait(f"{PLOT}.layout.grid.rows === 2")
        ink = page.run("getComputedStyle(document.body).color")
        page.dark(False)
        assert page.run("getComputedStyle(document.body).color") != ink
    finally:
        page.dark(False)
        page.resize(1280, 900)
