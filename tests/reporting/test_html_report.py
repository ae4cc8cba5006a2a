import json
import re
import time
from html.parser import HTMLParser
from urllib.parse import unquote

import pytest

from reporting.__main__ import main
from reporting.report import embedded, pictures_of
from results.schema import load_runs
from tests.reporting.browser import Browser, find_chromium
from tests.reporting.conftest import RunFolder, twin

HOSTILE = "</script><script>window.hacked=1</script><img src=x onerror=window.hacked=2>\"'&$\\frac{"
VOID = {"meta", "link", "br", "img", "input", "hr"}


class Page(HTMLParser):
    """Elements, their text, and whether every tag is closed where it should be."""

    def __init__(self, source):
        super().__init__()
        self.open, self.elements, self.problems = [], [], []
        self.feed(source)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.problems.append(tag)

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


def build(runs, *arguments, name="report.html"):
    target = runs.root / name
    assert main(["html", str(runs.root), "-o", str(target), *arguments]) == 0
    return target


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """A page of two protocols, with a name that would like to be markup."""
    runs = RunFolder(tmp_path_factory.mktemp("report"))
    runs.add_experiment(trainers=("CoOp", "BMIP"), datasets=("Caltech101", "OxfordPets", "EuroSAT"), seeds=(1, 2))
    for shots in (1, 4):
        metrics = {"all": {"accuracy": 50.0 + shots}}
        runs.add(metrics, protocol="few_shot", shots=shots, dataset="EuroSAT", config={"NOTE": HOSTILE, "SEED": 1})
    path = runs.add(trainer="placeholder", dataset="EuroSAT", seed=1, setting="bad")
    record = json.loads(path.read_text()) | {"trainer": HOSTILE, "setting": HOSTILE, "finished_at": HOSTILE}
    path.write_text(json.dumps(record))
    return build(runs)


def test_the_page_is_well_formed_and_needs_nothing_from_elsewhere(report):
    page = Page(report.read_text())
    assert (page.problems, page.open) == ([], [])
    assert [tag for tag, attributes in page.elements if "src" in attributes] == []
    assert [attributes["href"] for attributes in page.all("link")] == ["data:,"]
    assert "@import" not in report.read_text()
    outside = [a["href"] for a in page.all("a") if re.match(r"[a-z]+:|//", a["href"])]
    assert outside == []


def test_every_protocol_has_its_table_and_its_plots(report):
    page = Page(report.read_text())
    assert [section["id"] for section in page.all("section")] == ["open_world", "few_shot", "all-runs"]
    labels = " ".join(svg["aria-label"] for svg in page.all("svg"))
    for words in ("Few-shot curves", "Base against new", "Gain over", "Radar", "Spread over seeds", "confusion matrix"):
        assert words in labels
    assert labels.count("training curves") == 3
    assert labels.count("gate weights") == 3


def test_every_method_with_calibration_has_its_reliability_diagram(runs):
    calibration = {"ece": 10.0, "bins": {"count": [4, 4], "correct": [1, 3]}}
    for trainer, shots in (("CoOp", 1), ("CoOp", 4), ("BMIP", 4)):
        for dataset in ("EuroSAT", "DTD"):
            metrics = {"all": {"accuracy": 50.0} | ({"calibration": calibration} if trainer == "CoOp" else {})}
            runs.add(metrics, protocol="few_shot", trainer=trainer, shots=shots, dataset=dataset)
    pictures, left_out = pictures_of(load_runs([runs.root]), "p")
    diagrams = [picture for picture in pictures if "reliability" in picture.caption]
    assert [(picture.caption, picture.trainers, picture.datasets) for picture in diagrams] == [
        ("CoOp, 4 shots: accuracy by confidence on each data set (reliability diagram)", ["CoOp"], ["DTD", "EuroSAT"])
    ]
    assert not [line for line in left_out if line.startswith("reliability")]


def test_inner_names_of_the_plots_do_not_clash(report):
    text = report.read_text()
    names = re.findall(r'\bid="([^"]+)"', text)
    svgs = [set(re.findall(r'\bid="([^"]+)"', svg)) for svg in re.findall(r"<svg.*?</svg>", text, re.DOTALL)]
    assert sum(map(len, svgs)) == len(set.union(*svgs))
    referred = set(re.findall(r'(?:xlink:)?href="#([^"]+)"|url\(#([^)]+)\)', text))
    assert {first or second for first, second in referred} <= set(names)


def test_foreign_text_is_text(report):
    page = Page(report.read_text())
    assert len(page.all("script")) == 1
    assert not page.all("img")
    assert not [attributes for _, attributes in page.elements if any(name.startswith("on") for name in attributes)]


def test_every_run_links_to_its_files_and_configuration(report):
    page = Page(report.read_text())
    links = [a["href"] for a in page.all("a")]
    files = [(report.parent / unquote(link)).resolve() for link in links if not link.startswith("#")]
    assert sorted(files) == sorted(run.path.resolve() for run in load_runs([report.parent]))
    identities = {attributes["id"] for _, attributes in page.elements if "id" in attributes}
    assert {link[1:] for link in links if link.startswith("#")} <= identities


def test_equal_configurations_are_shown_once(report):
    details = [a for a in Page(report.read_text()).all("details") if a.get("class") == "config"]
    assert len(details) == 2  # the experiment's {"SEED": 1} without its seed, and the few-shot runs' one


@pytest.mark.parametrize("folder", ["javascript:alert(1)", "a b&c", "100%", "ü"])
def test_links_to_oddly_named_folders_stay_relative(runs, folder):
    path = runs.add()
    moved = runs.root / folder
    moved.mkdir()
    path.rename(moved / "results.json")
    (link,) = [a["href"] for a in Page(build(runs).read_text()).all("a") if not a["href"].startswith("#")]
    assert unquote(link) == f"{folder}/results.json"
    assert ":" not in link


def test_the_page_is_the_same_each_time(runs):
    runs.add_experiment(seeds=(1, 2))
    assert build(runs).read_bytes() == build(runs, name="again.html").read_bytes()


def test_an_existing_page_is_not_replaced_unasked(report, capsys):
    before = report.read_bytes()
    assert main(["html", str(report.parent), "-o", str(report)]) == 2
    assert "--force" in capsys.readouterr().err
    assert report.read_bytes() == before


def test_published_rows_and_warnings_are_shown(runs, capsys):
    runs.add(protocol="base_to_new", dataset="EuroSAT", seed=1)
    runs.add(protocol="base_to_new", dataset="EuroSAT", seed=2)
    runs.add(protocol="base_to_new", dataset="EuroSAT", trainer="BMIP")
    page = build(runs, "--published").read_text()
    assert '<tr class="published" data-trainer="0"><th scope="row">CoOp, published</th>' in page
    assert "BMIP on EuroSAT: other rows have seed 2, this one only 1" in page
    assert "warning: BMIP on EuroSAT" in capsys.readouterr().err


def test_a_damaged_run_or_a_twin_stops_the_report_and_is_named(runs, capsys):
    good = runs.add()
    bad = runs.add(seed=2)
    bad.write_text(bad.read_text()[:50])
    target = runs.root / "report.html"
    assert main(["html", str(runs.root), "-o", str(target)]) == 2
    assert str(bad) in capsys.readouterr().err
    bad.write_text(twin(good.read_text()))
    assert main(["html", str(runs.root), "-o", str(target)]) == 2
    assert str(bad) in capsys.readouterr().err
    assert not target.exists()


def test_a_protocol_without_a_table_is_named(runs, capsys):
    path = runs.add(protocol="chess")
    assert main(["html", str(runs.root), "-o", str(runs.root / "report.html")]) == 2
    assert str(path) in capsys.readouterr().err


def test_an_embedded_svg_refers_to_its_own_parts():
    inner = '<a id="x"/><b href="#x" c="url(#x)"/>'
    svg = f'<?xml version="1.0"?>\n<svg width="720pt" height="9pt" viewBox="0 0 1 1">{inner}</svg>'
    assert embedded(svg, "p1", 'a "label"') == (
        '<svg viewBox="0 0 1 1" class="wide" role="img" aria-label="a &#34;label&#34;" style="max-width:720pt">'
        '<a id="p1-x"/><b href="#p1-x" c="url(#p1-x)"/></svg>'
    )


# In a browser


@pytest.fixture(scope="module")
def chromium():
    executable = find_chromium()
    if executable is None:
        pytest.skip("no Chromium on this machine (Debian: apt-get install chromium)")
    return executable


def column(number, table):
    return (
        f"[...document.querySelectorAll('{table} tbody tr')].filter(r => !r.hidden)"
        f".map(r => r.cells[{number}].textContent.trim())"
    )


def test_sorting_and_filtering_in_a_browser(report, chromium):
    with Browser(chromium) as browser:
        browser.open(report.as_uri())
        assert browser.evaluate("window.hacked") is None
        runs = "#runs"
        assert browser.evaluate(f"{column(0, runs)}.length") == 18
        base = browser.evaluate(column(6, runs))
        browser.click("#runs thead button", 6)
        numbers = [float(value) for value in base if value != "-"]
        ordered = browser.evaluate(column(6, runs))
        assert [float(value) for value in ordered if value != "-"] == sorted(numbers, reverse=True)
        assert ordered[-2:] == ["-", "-"]  # the few-shot runs have none: last, whatever the order
        assert browser.evaluate("document.querySelectorAll('#runs th')[6].ariaSort") == "descending"
        browser.click("#runs thead button", 6)
        ordered = browser.evaluate(column(6, runs))
        assert [float(value) for value in ordered if value != "-"] == sorted(numbers)
        assert ordered[-2:] == ["-", "-"]
        browser.click("#runs thead button", 2)
        assert browser.evaluate(column(2, runs)) == sorted(browser.evaluate(column(2, runs)), key=str.lower)

        browser.click(".filters summary")
        browser.click(".filters button[data-all=trainer][data-tick='0']")
        assert browser.evaluate(f"{column(0, runs)}.length") == 0
        assert browser.evaluate("[...document.querySelectorAll('figure')].every(f => f.hidden)")
        trainers = browser.evaluate("[...document.querySelectorAll('.filters input[name=trainer]')].map(b => b.value)")
        bmip = browser.evaluate(
            "[...document.querySelectorAll('.filters label')].findIndex(l => l.textContent === 'BMIP')"
        )
        assert 0 <= bmip < len(trainers)
        browser.click(".filters input", bmip)
        assert set(browser.evaluate(column(0, runs))) == {"BMIP"}
        assert browser.evaluate("document.querySelector('.filters output').textContent") == "6 of 18 runs shown"
        assert set(browser.evaluate(column(0, "#open_world table"))) == {"BMIP"}
        browser.click(".filters input[name=dataset]", 0)
        assert sorted(set(browser.evaluate(column(2, runs)))) == ["EuroSAT", "OxfordPets"]
        headings = "[...document.querySelector('#open_world table thead tr').cells].filter(c => !c.hidden).length"
        assert browser.evaluate(headings) == 2 + 2 + 1
        browser.click("#runs tbody tr:not([hidden]) a")
        opened = "document.querySelectorAll('details.config[open]').length"
        deadline = time.monotonic() + 5  # the page hears of a new address a moment after the click
        while browser.evaluate(opened) != 1 and time.monotonic() < deadline:
            time.sleep(0.05)
        assert browser.evaluate(opened) == 1
        assert browser.problems == []
        assert [url for url in browser.requests if not url.startswith(("file:", "data:"))] == []


@pytest.mark.parametrize(("width", "mobile"), [(1280, False), (390, True)])
def test_nothing_sticks_out_of_the_window(report, chromium, width, mobile):
    with Browser(chromium) as browser:
        browser.open(report.as_uri(), width=width, mobile=mobile)
        assert browser.evaluate("document.documentElement.scrollWidth") <= width
        size = "parseFloat(getComputedStyle(document.querySelector('td')).fontSize)"
        assert browser.evaluate(size) >= 12
        assert browser.problems == []


def test_on_paper_there_are_no_controls(report, chromium):
    with Browser(chromium) as browser:
        browser.open(report.as_uri())
        browser.call("Emulation.setEmulatedMedia", media="print")
        assert browser.evaluate("getComputedStyle(document.querySelector('.filters')).display") == "none"
        assert browser.evaluate("getComputedStyle(document.querySelector('table')).display") == "table"
        assert len(browser.call("Page.printToPDF")["data"]) > 10_000
