"""Calibration and detection of new classes in tables, comparisons and plots: where they are asked for only."""

import csv
import io
import json
import re

import numpy as np
import pytest

from reporting.__main__ import main
from reporting.formats import FORMATS
from reporting.methods import PROTOCOLS
from reporting.table import build_table, document
from results.calibration import save_predictions
from results.schema import load_runs
from tests.reporting.conftest import damage


def calibration(ece, nll=1.0, scaled=None):
    found = {"ece": ece, "adaptive_ece": ece, "mce": 2 * ece, "nll": nll, "brier": nll / 2}
    found["bins"] = {
        "count": [0] * 13 + [4, 16],
        "correct": [0] * 13 + [2, 15],
        "confidence": [None] * 13 + [0.9, 0.96],
    }
    if scaled is None:
        return found | {"no_temperature": "no few-shot validation set"}
    return found | {"temperature": 1.5, "scaled": calibration(scaled, nll)}


def with_calibration(runs, ece, scaled=None):
    metrics = runs.open_world_metrics(70.0, 60.0)
    for number, split in enumerate(metrics):
        metrics[split]["calibration"] = calibration(ece + number, nll=ece / 10, scaled=scaled)
    scores = ("union", "msp", "mcm", "energy", "max_logit")
    metrics["all"]["ood"] = {
        score: {"auroc": 80.0 + place, "fpr95": 30.0 + ece, "aupr": 70.0} for place, score in enumerate(scores)
    }
    return metrics


def shown(runs, *names, **how):
    return build_table(load_runs([runs.root]), metrics=names, **how)


@pytest.fixture
def both(runs):
    runs.add(with_calibration(runs, 9.0, scaled=3.0))
    runs.add(with_calibration(runs, 4.0), trainer="BMIP")
    return runs


def test_no_table_shows_them_unasked(both):
    assert tuple(shown(both).blocks[0].columns) == tuple(metric.key for metric in PROTOCOLS["open_world"].metrics)


def test_a_group_is_one_column_per_class_split(both):
    table = shown(both, "ece", "H", "fpr95")
    (block,) = table.blocks
    assert list(block.columns.values()) == ["ECE base", "ECE new", "ECE all", "H", "FPR95"]
    assert [row.cells["ece_new"].mean for row in block.rows] == [10.0, 5.0]
    assert table.warnings == ()
    assert any(line.startswith("ECE: expected calibration error") for line in table.legend)
    assert any(line.startswith("FPR95: ") and "over base and new classes" in line for line in table.legend)


def test_in_base_to_new_tables_there_are_two_splits(both):
    assert [*shown(both, "nll", protocol_name="base_to_new").blocks[0].columns] == ["nll_base", "nll_new"]


def test_metrics_at_the_temperature_and_what_lacks_one(both):
    table = shown(both, "ece_scaled_base")
    assert [cell and cell.mean for row in table.blocks[0].rows for cell in row.cells.values()] == [3.0, None]
    assert [warning for warning in table.warnings if "holds no ECE scaled base" in warning]


@pytest.mark.parametrize("group", ["dataset", "metric"])
def test_the_lowest_error_is_bold_and_the_highest_area(both, group):
    both.add(with_calibration(both, 20.0), trainer="BMIP", dataset="emoji")
    both.add(with_calibration(both, 30.0), dataset="emoji")
    table = shown(both, "ece_base", "auroc_mcm", group=group)
    text = FORMATS["latex"](document(table, 1))
    assert sorted(set(re.findall(r"\\textbf\{([^}]*)\}", text))) == ["12.0", "20.0", "4.0", "82.0"]


def test_every_score_has_its_columns(both):
    assert [*shown(both, "energy").blocks[0].columns] == ["auroc_energy", "fpr95_energy", "aupr_energy"]
    legend = " ".join(shown(both, "energy", "mcm").legend)
    assert "log-sum-exp" in legend
    assert "NeurIPS 2022" in legend


@pytest.fixture
def few_shot(runs):
    for trainer, ece in (("CoOp", 9.0), ("BMIP", 4.0)):
        for shots in (1, 16):
            metrics = {"all": {"accuracy": 60.0, "calibration": calibration(ece + shots, nll=0.5)}}
            runs.add(metrics, protocol="few_shot", shots=shots, trainer=trainer, dataset="eurosat")
    return runs


def test_few_shot_tables_show_one_metric_at_a_time(few_shot, capsys):
    table = shown(few_shot, "ece", published="measured")
    assert table.title == "Few-shot classification: ECE"
    assert [cell.mean for row in table.blocks[0].rows for cell in row.cells.values()] == [10.0, 25.0, 5.0, 20.0]
    assert not any(row.source for row in table.blocks[0].rows)
    assert not any("Accuracy over all classes" in line for line in table.legend)
    assert re.findall(r"\\textbf\{([^}]*)\}", FORMATS["latex"](document(table, 1))) == ["5.0", "20.0"]
    assert main(["table", str(few_shot.root), "--metrics", "ece,all"]) == 2
    assert "a table by shots shows one metric: choose one of ece, all" in capsys.readouterr().err


def test_a_block_for_each_metric_where_data_sets_are_columns(runs):
    for dataset, ece in (("eurosat", 5.0), ("dtd", 7.0)):
        metrics = {"all": {"accuracy": 60.0, "calibration": calibration(ece, nll=0.5)}}
        runs.add(metrics, protocol="cross_dataset", dataset=dataset)
    table = shown(runs, "ece", "nll", published="all")
    assert [block.title for block in table.blocks] == ["ECE", "NLL"]
    assert table.blocks[0].rows[0].cells["average"].mean == 6.0
    assert table.legend[0].startswith("Numbers in percent, but where this legend says otherwise; mean")


def test_a_table_of_older_results_says_what_they_lack(runs):
    path = runs.add()
    assert shown(runs, "ece_all", "mcm").warnings == (f"{path} holds no ECE all, AUROC MCM, FPR95 MCM, AUPR MCM",)


def test_an_unknown_metric_is_told_the_groups(runs, capsys):
    runs.add()
    assert main(["table", str(runs.root), "--metrics", "f1"]) == 2
    assert "openworld_auc, ece, ece_scaled, adaptive_ece, " in capsys.readouterr().err


def test_comparisons_take_them_in_points(both, capsys):
    assert main(["compare", "CoOp", "BMIP", str(both.root), "--metrics", "ece_base,nll_base", "--format", "csv"]) == 0
    lines = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [(line["label"], float(line["difference"])) for line in lines] == [
        ("ECE base", -5.0),
        ("NLL base x 100", -50.0),
    ]


def test_zero_shot_at_a_temperature_is_compared_seed_by_seed(runs, capsys):
    """The validation images, which the temperature fits, are drawn by the seed, though nothing is trained."""
    for seed, scaled in enumerate((3.0, 5.0, 8.5), start=1):
        runs.add(with_calibration(runs, 9.0, scaled=scaled), trainer="ZeroshotCLIP", zero_shot=True, seed=seed)
        runs.add(with_calibration(runs, 4.0, scaled=2.0 * seed), seed=seed)
    table = shown(runs, "ece_scaled_base", "ece_base")
    assert table.warnings == ()
    names = "ece_scaled_base,ece_base"
    assert main(["compare", "ZeroshotCLIP", "CoOp", str(runs.root), "--metrics", names, "--format", "json"]) == 0
    content = json.loads(capsys.readouterr().out)
    scaled, plain = content["metrics"]
    assert [(pair["first"], pair["second"]) for pair in scaled["pairs"]] == [(3.0, 2.0), (5.0, 4.0), (8.5, 6.0)]
    assert [pair["first"] for pair in plain["pairs"]] == [9.0] * 3
    zero_shot, coop = (row.cells["ece_scaled_base"].mean for row in table.blocks[0].rows)
    assert scaled["difference"]["mean"] == pytest.approx(coop - zero_shot)
    assert any(
        line.endswith("its number stands for every seed, unless its own seeds differ.") for line in content["legend"]
    )


def save(folder, flags=(True, False, True, True)):
    right = np.array(flags)
    values = {"confidence": [0.9, 0.8, 0.7, 0.95], "nll": [0.1, 1.6, 0.4, 0.05], "brier": [0.02, 1.3, 0.2, 0.01]}
    parts = {"label": np.zeros(4, int), "prediction": (~right).astype(int), **values, "margin": values["confidence"]}
    save_predictions(folder / "predictions.npz", {"base": parts})


def test_recompute_takes_other_bins_from_the_predictions(runs, capsys):
    save(runs.add().parent)
    older = runs.add(seed=2)
    for bins, ece in (("1", 100 * (0.8375 - 0.75)), ("10", 100 * (0.1 + 0.8 + 0.3 - 0.05 - 0.05 + 0.1) / 4)):
        assert main(["recompute", str(runs.root), "--bins", bins, "--format", "csv"]) == 0
        out, err = capsys.readouterr()
        (line,) = csv.DictReader(io.StringIO(out))
        assert (line["split"], line["images"], line["accuracy"]) == ("base", "4", "75.0")
        assert float(line["nll"]) == pytest.approx(2.15 / 4)
        if bins == "1":
            assert float(line["ece"]) == pytest.approx(ece, abs=1e-4)
        assert f"{older} has no predictions.npz" in err
    assert main(["recompute", str(runs.root)]) == 0
    assert "| CoOp " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no run has its predictions.npz"),
        (b"PK damaged", "cannot be read"),
        ("content", "cannot be read"),
        ("method", "cannot be read"),
        ("lacking", "lacks brier, confidence"),
    ],
)
def test_recompute_refuses_what_it_cannot_use_in_one_line(runs, capsys, content, message):
    path = runs.add().with_name("predictions.npz")
    if content == "lacking":
        np.savez(path, base_label=np.zeros(3))
    elif isinstance(content, str):
        save(path.parent)
        damage(path, content)
    elif content:
        path.write_bytes(content)
    assert main(["recompute", str(runs.root)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1
