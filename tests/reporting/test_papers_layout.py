"""Rows methods, columns data sets, one block per metric; and zero-shot in few-shot tables."""

import csv
import io
import json
from math import nan
from statistics import fmean

import pytest
from scipy import stats

from reporting.__main__ import main
from reporting.methods import PROTOCOLS
from reporting.table import build_table
from results.schema import load_runs
from sweeping.plan import PROTOCOLS as SWEPT


def test_a_block_per_metric_with_data_sets_and_their_average_as_columns(runs):
    for dataset, base in (("OxfordPets", 80.0), ("Caltech101", 90.0)):
        for seed in (1, 2):
            runs.add(runs.open_world_metrics(base + seed, 60.0), dataset=dataset, seed=seed)
    blocks = build_table(load_runs([runs.root]), group="metric").blocks
    assert [block.title for block in blocks][:4] == ["base", "new", "H", "avg H"]
    assert tuple(blocks[0].columns) == ("Caltech101", "OxfordPets", "average over 2 data sets")
    caltech, pets, average = blocks[0].rows[0].cells.values()
    assert (caltech.mean, pets.mean, average.mean) == (91.5, 81.5, 86.5)
    assert average.std == pytest.approx(0.5**0.5)


def test_the_command_takes_the_papers_layout_for_several_data_sets(runs, capsys):
    runs.add(dataset="digits")
    assert main(["table", str(runs.root)]) == 0
    assert "### digits" in capsys.readouterr().out
    runs.add(dataset="emoji")
    assert main(["table", str(runs.root)]) == 0
    assert "### OpenworldAUC" in capsys.readouterr().out
    assert main(["table", "--group", "dataset", str(runs.root)]) == 0
    assert "### emoji" in capsys.readouterr().out


def test_csv_of_the_papers_layout_names_shots_and_data_set(runs, capsys):
    for dataset in ("digits", "emoji"):
        runs.add({"all": {"accuracy": 51.0}}, protocol="few_shot", shots=4, dataset=dataset)
    assert main(["table", "--format", "csv", str(runs.root)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].startswith("few_shot,4,CoOp,CoOp,tiny_ep10,bundled:tiny,4,last_step,,digits,1,51.0")


def test_zero_shot_stands_for_every_number_of_shots(runs):
    for shots, accuracy in ((1, 60.0), (4, 70.0)):
        runs.add({"all": {"accuracy": accuracy}}, protocol="few_shot", shots=shots)
    runs.add({"all": {"accuracy": 55.0}}, protocol="few_shot", shots=16, trainer="ZeroshotCLIP", zero_shot=True)
    table = build_table(load_runs([runs.root]))
    zero_shot = table.blocks[0].rows[0]
    assert zero_shot.method.label == "ZeroshotCLIP"
    assert [cell.mean for cell in zero_shot.cells.values()][:2] == [55.0, 55.0]


@pytest.mark.parametrize("protocol", ["open_world", "cross_dataset"])
def test_the_html_table_is_one_sortable_page(runs, capsys, protocol):
    metrics = {"all": {"accuracy": 51.25}} if protocol == "cross_dataset" else None
    for dataset in ("digits", "emoji"):
        runs.add(metrics, protocol=protocol, dataset=dataset, trainer="<b>&'\"")
    assert main(["table", "--format", "html", str(runs.root)]) == 0
    page = capsys.readouterr().out
    assert page.startswith("<!DOCTYPE html>")
    assert '<table class="sortable">' in page
    assert "&lt;b&gt;&amp;&#39;&#34;" in page
    assert "<b>" not in page


def test_a_zero_shot_table_has_data_sets_as_columns_and_their_average(runs, capsys):
    for dataset, accuracy in (("Digits", 50.0), ("EuroSAT", 60.0)):
        metrics = {"all": {"accuracy": accuracy}}
        runs.add(metrics, protocol="zero_shot", trainer="ZeroshotCLIP", zero_shot=True, dataset=dataset)
    table = build_table(load_runs([runs.root]))
    assert tuple(table.blocks[0].columns) == ("EuroSAT", "Digits", "average")
    assert [cell.mean for cell in table.blocks[0].rows[0].cells.values()] == [60.0, 50.0, 55.0]
    page = runs.root / "page.html"
    assert main(["html", str(runs.root), "-o", str(page)]) == 0
    assert 'id="zero_shot"' in page.read_text()
    assert capsys.readouterr().err == ""


def test_every_protocol_that_a_sweep_runs_has_a_table():
    assert {protocol.name for protocol in SWEPT.values()} <= PROTOCOLS.keys()


def test_the_average_over_the_data_sets_alone(runs, capsys):
    for dataset, base in (("OxfordPets", 80.0), ("Caltech101", 90.0)):
        runs.add(runs.open_world_metrics(base, 60.0), dataset=dataset)
    (block,) = build_table(load_runs([runs.root]), group="average").blocks
    assert (block.title, block.rows[0].cells["base"].mean) == ("average over 2 data sets", 85.0)
    assert main(["table", "--group", "average", str(runs.root / "nothing")]) == 2
    capsys.readouterr()
    only = [str(run.path) for run in load_runs([runs.root]) if run.dataset == "OxfordPets"]
    assert main(["table", "--group", "average", *only]) == 2
    assert "no average over data sets: the runs are on OxfordPets alone" in capsys.readouterr().err


def test_the_average_of_transfer_leaves_the_source_out(runs):
    for dataset, accuracy in (("ImageNet", 70.0), ("OxfordPets", 80.0), ("Caltech101", 90.0)):
        metrics = {"all": {"accuracy": accuracy}}
        runs.add(metrics, protocol="cross_dataset", dataset=dataset, source_dataset="ImageNet")
    (block,) = build_table(load_runs([runs.root]), group="average").blocks
    assert [cell.mean for cell in block.rows[0].cells.values()] == [85.0]


@pytest.mark.parametrize(
    ("protocol", "options", "column", "datasets"),
    [
        ("open_world", ["--group", "dataset"], "base", 5),
        ("open_world", ["--group", "metric"], "base", 5),
        ("open_world", ["--group", "average"], "base", 3),
        ("zero_shot", [], "average", 5),
        ("few_shot", ["--group", "dataset"], "16 shots", 5),
        ("few_shot", ["--group", "metric"], "16 shots", 3),
    ],
)
def test_an_average_has_an_interval_over_seeds_and_from_five_on_over_data_sets(
    runs, capsys, protocol, options, column, datasets
):
    accuracies = {"OxfordPets": (80.0, 81.0, 85.0), "Caltech101": (90.0, 92.0, 91.0), "DTD": (50.0, 51.0, 49.0)}
    if datasets == 5:
        accuracies |= {"EuroSAT": (70.0, 75.0, 74.0), "UCF101": (72.0, 72.0, 73.0)}
    for dataset, of_seeds in accuracies.items():
        for seed, accuracy in enumerate(of_seeds):
            metrics = runs.open_world_metrics(accuracy, 60.0, everything=accuracy)
            runs.add(metrics, dataset=dataset, seed=seed, protocol=protocol)
    runs.add(runs.open_world_metrics(9.0, 9.0), dataset="OxfordPets", seed=7, protocol=protocol)  # of one data set
    over = {"seeds": [fmean(of_seed) for of_seed in zip(*accuracies.values(), strict=True)]}
    if datasets == 5:
        over["data sets"] = [fmean(of_seeds) for of_seeds in accuracies.values()]
    ends = {what: stats.t.interval(0.95, len(v) - 1, fmean(v), stats.sem(v)) for what, v in over.items()}
    assert main(["table", *options, str(runs.root)]) == 0
    shown = capsys.readouterr().out.split("### 95 % intervals of the average\n\n")[1].split("\n\n")[0]
    heading, _, *lines = [[cell.strip() for cell in line.split("|")] for line in shown.splitlines()]
    for line, (what, (low, high)) in zip(lines, ends.items(), strict=True):
        assert line[1:3] == ["CoOp", f"{what} (n={len(over[what])})"]
        assert line[heading.index(column)] == f"{low:.2f} to {high:.2f}"
    assert main(["table", *options, "--format", "csv", str(runs.root)]) == 0
    record = next(line for line in csv.DictReader(io.StringIO(capsys.readouterr().out)) if line["seeds_low"])
    found = [float(record[f"{name}_{end}"] or "nan") for name in ("seeds", "datasets") for end in ("low", "high")]
    expected = [*ends["seeds"], *ends.get("data sets", (nan, nan))]
    assert found == pytest.approx(expected, nan_ok=True)
    assert main(["table", *options, "--format", "json", str(runs.root)]) == 0
    blocks = json.loads(capsys.readouterr().out)["blocks"]
    cells = [cell for block in blocks for row in block["rows"] for cell in row["cells"].values() if cell]
    average = next(cell for cell in cells if "over_seeds" in cell)
    ends_there = [over and (over["low"], over["high"]) for over in (average["over_seeds"], average["over_datasets"])]
    assert ends_there == [pytest.approx(ends["seeds"]), pytest.approx(ends["data sets"]) if datasets == 5 else None]


def test_an_average_without_spread_or_of_one_data_set_has_no_interval(runs, capsys):
    runs.add(dataset="OxfordPets")
    assert main(["table", "--group", "metric", str(runs.root)]) == 0
    assert "95 % intervals of the average" not in capsys.readouterr().out
    runs.add(dataset="Caltech101")  # the same numbers
    assert main(["table", str(runs.root)]) == 0
    assert "### 95 % intervals of the average" not in capsys.readouterr().out
