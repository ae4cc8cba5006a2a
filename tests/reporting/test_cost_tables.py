"""What runs cost, in tables where it is asked for and in a plot."""

import re

import pytest

from reporting.__main__ import main
from reporting.drawing import Options, PlotError, style
from reporting.formats import FORMATS
from reporting.methods import PROTOCOLS
from reporting.plots import KINDS
from reporting.table import build_table, document
from results.schema import load_runs

CPU = {"device": "cpu", "device_name": "AMD EPYC", "threads": 1}
GPU = {"device": "cuda", "device_name": "H200", "threads": 16}


def costly(runs, params, seconds, mib=900.0, earlier=0, environment=CPU, **changes):
    metrics = runs.open_world_metrics(70.0 + params / 1e6, 60.0)
    metrics["base"]["image_seconds"] = 0.002 * seconds
    metrics["new"]["image_seconds"] = 0.004 * seconds  # none of `all`: its features were known
    metrics["base"]["image_gflop"] = 32.5
    tensors = {"trainable_parameters": params, "trainable_tensors": {}}
    timing = {"train": seconds, "preparation": 0.5} if params else {}
    memory = {"peak_rss_mib": mib, "peak_cuda_mib": 2 * mib, "earlier_runs": earlier}
    how = {"model": tensors, "timing": timing, "memory": memory, "environment": environment}
    return runs.add(metrics, **how | changes)


def shown(runs, *names, **how):
    return build_table(load_runs([runs.root]), metrics=names, **how)


@pytest.fixture
def three(runs):
    for seed in (1, 2):
        costly(runs, 2048, 10.0 * seed, earlier=seed - 1, seed=seed)
        costly(runs, 3_555_072, 30.0 + seed, seed=seed, trainer="MaPLe")
    costly(runs, 0, 1.0, trainer="ZeroshotCLIP")
    return runs


def test_cost_stands_for_all_columns(three):
    table = shown(three, "H", "cost")
    (block,) = table.blocks
    assert list(block.columns.values()) == ["H", "trained parameters", "train s", "ms/image", "GFLOP/image", "peak MiB"]
    zero_shot, coop, _ = block.rows
    assert [coop.cells[key].mean for key in ("params", "train_seconds")] == [2048.0, 15.5]
    assert coop.cells["ms_per_image"].mean == pytest.approx(45.0)
    assert coop.cells["gflop_per_image"].mean == 32.5
    assert coop.cells["peak_memory"].values == {1: 900.0}  # the process's second run does not know its own
    assert [zero_shot.cells[key].mean for key in ("params", "train_seconds")] == [0.0, 0.0]
    assert any("holds no peak MiB" in warning for warning in table.warnings)
    assert not any("different devices" in warning for warning in table.warnings)
    assert any(line.startswith("Measured on AMD EPYC, 1 thread. Time and memory of another") for line in table.legend)
    text = FORMATS["latex"](document(table, 1))
    assert "3,555,072 " in text
    assert {"0", "0.00", "3.00"} <= set(re.findall(r"\\textbf\{([^}]*)\}", text))  # the lowest are bold


@pytest.mark.parametrize("digits", [0, 2])
def test_costs_have_three_significant_digits(runs, digits):
    for dataset in ("digits", "emoji"):
        for trainer, gflop in (("CoOp", 0.04606), ("MaPLe", 0.04634), ("BMIP", 1234.4)):
            for seed in (1, 2):
                metrics = {"base": {"accuracy": 70.0, "image_gflop": gflop * seed}, "new": {"accuracy": 60.0}}
                runs.add(metrics, trainer=trainer, dataset=dataset, seed=seed, protocol="base_to_new")
    table = document(shown(runs, "gflop_per_image", "base", group="average"), digits)
    numbers, intervals = ([[number.text for number in line.numbers] for line in grid.lines] for grid in table.grids)
    accuracy = f"{70:.{digits}f} ± {0:.{digits}f}"
    assert numbers == [["0.0691 ± 0.0326", accuracy], ["0.0695 ± 0.0328", accuracy], ["1,852 ± 873", accuracy]]
    assert [line.numbers[0].best for line in table.grids[0].lines] == [True, False, False]
    assert intervals[0] == ["-0.2235 to 0.3617", "-"]


def test_no_table_shows_them_unasked(three):
    assert tuple(shown(three).blocks[0].columns) == tuple(metric.key for metric in PROTOCOLS["open_world"].metrics)


def test_counts_of_parameters_need_no_device(three):
    assert not any("Measured on" in line for line in shown(three, "params").legend)


def test_other_devices_are_warned_about(three):
    costly(three, 100, 1.0, trainer="BMIP", environment=GPU, earlier=3)
    table = shown(three, "peak_memory", "train_seconds")
    assert table.blocks[0].rows[-1].cells["peak_memory"].mean == 1800.0  # CUDA's, which starts anew in each run
    (warning,) = (warning for warning in table.warnings if "different devices" in warning)
    assert "AMD EPYC, 1 thread: " in warning
    assert "H200: " in warning


def test_older_results_say_what_they_lack(runs):
    path = runs.add(timing={"total": 3.0})
    warning = f"{path} holds no train s, ms/image, GFLOP/image, peak MiB"
    assert shown(runs, "cost").warnings == (warning,)


def test_few_shot_tables_show_one_cost(runs):
    for shots in (1, 16):
        costly(runs, 2048, float(shots), protocol="few_shot", shots=shots)
    assert [cell.mean for cell in shown(runs, "train_seconds").blocks[0].rows[0].cells.values()] == [1.5, 16.5]


def test_comparisons_test_no_cost(three, capsys):
    assert main(["compare", "CoOp", "MaPLe", str(three.root), "--metrics", "train_seconds"]) == 2
    assert "train_seconds is a cost, of which no difference is tested" in capsys.readouterr().err


def plotted(runs, **options):
    with style():
        return KINDS["cost"].draw(load_runs([runs.root]), Options(**options))


def test_the_plot_has_a_point_per_method_and_a_level_for_what_costs_nothing(three):
    three.add(trainer="BMIP", timing={})
    figure = plotted(three, cost="train_seconds", metric="base")
    (panel,) = figure.axes
    assert panel.get_xscale() == "log"
    figure.draw_without_rendering()
    assert {"10", "20"} <= {label.get_text() for label in panel.get_xticklabels()}
    means = [points for points in panel.collections if points.get_zorder() == 3]
    assert [points.get_offsets()[0][0] for points in means] == [15.5, 32.0]
    assert [line.get_label() for line in panel.lines] == ["ZeroshotCLIP"]
    named = [text.get_text() for text in panel.get_legend().get_texts()]
    assert "BMIP: not drawn, lacks a number" in named
    assert panel.get_title() == "digits, on different devices: not comparable"


def test_a_plot_without_the_cost_is_refused(runs):
    runs.add(timing={})
    with pytest.raises(PlotError, match="no method that costs something has train s and avg H"):
        plotted(runs, cost="train_seconds")
    with pytest.raises(PlotError, match="no cost 'money'; choose from params, train_seconds"):
        plotted(runs, cost="money")
