import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from reporting.__main__ import main
from reporting.drawing import COLOURS, FAMILIES, Options, PlotError, look, looks, style
from reporting.methods import selected
from reporting.plots import KINDS, draw_plot
from results.schema import ResultsError, load_runs
from tests.reporting.conftest import damage, twin

ROOT = Path(__file__).resolve().parents[2]
THREE = ("Caltech101", "OxfordPets", "EuroSAT")


def save_features(folder, classes=3, per_class=5):
    draw = np.random.default_rng(0)
    centres = draw.normal(size=(classes, 8))
    labels = np.repeat(np.arange(classes), per_class)
    np.savez_compressed(
        folder / "features.npz",
        base_images=(centres[labels] + 0.1 * draw.normal(size=(len(labels), 8))).astype("float16"),
        base_labels=labels,
        base_texts=centres.astype("float16"),
        base_classnames=np.array([f"class {index}" for index in range(classes)]),
    )


@pytest.fixture
def runs_for(runs):
    """Runs that fill a kind of plot."""

    def make(kind):
        if kind == "few_shot":
            for dataset in THREE[:2]:
                runs.add(
                    {"all": {"accuracy": 58.0}}, protocol=kind, dataset=dataset, trainer="ZeroshotCLIP", zero_shot=True
                )
                for shots in (1, 2, 4):
                    for seed in (1, 2):
                        metrics = {"all": {"accuracy": 60.0 + shots + seed}}
                        runs.add(metrics, protocol=kind, dataset=dataset, shots=shots, seed=seed)
        elif kind == "reliability":
            for seed in (1, 2):
                bins = {"count": [0, 8, 32], "correct": [0, 2, 20 + 4 * seed]}
                calibration = {"ece": 10.0 + seed, "bins": bins}
                for dataset in THREE[:2]:
                    metrics = {"accuracy": 70.0, "calibration": calibration}
                    runs.add({"base": metrics, "new": {"accuracy": 60.0}}, seed=seed, dataset=dataset)
        elif kind in ("confusion", "tsne"):
            runs.add_experiment(trainers=("BMIP",), seeds=(1, 2) if kind == "confusion" else (1,))
            (runs.root / "open_world" / "ZeroshotCLIP" / "tiny_ep10" / "Digits" / "16" / "1" / "results.json").unlink()
            if kind == "tsne":
                save_features(next(runs.root.rglob("results.json")).parent)
        elif kind == "critical_difference":
            runs.add_experiment(datasets=(*THREE, "DTD", "Food101"), seeds=(1,))
        else:
            runs.add_experiment(datasets=THREE[:1] if kind in ("curves", "gates") else THREE)
        return load_runs([runs.root])

    return make


def figure_of(kind, loaded, options=None):
    with style():
        return KINDS[kind].draw(loaded, options or Options())


def texts_of(figure):
    found = [text.get_text() for axes in figure.axes for text in axes.texts]
    legends = [*figure.legends, *(axes.get_legend() for axes in figure.axes if axes.get_legend())]
    return found + [text.get_text() for legend in legends for text in legend.get_texts()]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_has_labelled_axes_and_something_in_them(kind, runs_for):
    figure = figure_of(kind, runs_for(kind))
    panels = [axes for axes in figure.axes if axes.get_label() != "<colorbar>"]
    assert panels
    for axes in panels:
        assert axes.lines or axes.collections or axes.patches or axes.images
        if axes.name != "polar":
            assert axes.get_xlabel()
            assert axes.get_ylabel() or kind == "critical_difference"
        assert axes.get_title()


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_a_valid_file_and_the_same_each_time(kind, runs_for):
    loaded = runs_for(kind)
    svg, again = (draw_plot(kind, loaded, "svg") for _ in range(2))
    assert svg == again
    root = ElementTree.fromstring(svg)
    assert root.tag.endswith("svg")
    assert len(list(root.iter("{http://www.w3.org/2000/svg}path"))) > 10
    assert b"<dc:date>" not in svg
    png, again = (draw_plot(kind, loaded, "png", dpi=60) for _ in range(2))
    assert png == again
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    assert png.endswith(b"IEND\xaeB`\x82")
    width, height = (int.from_bytes(png[start : start + 4], "big") for start in (16, 20))
    assert width > 200
    assert height > 100


def test_a_critical_difference_diagram_joins_the_methods_that_are_not_told_apart(runs):
    for number, dataset in enumerate((*THREE, "DTD", "Food101", "a", "b")):
        for place, trainer in enumerate(("BMIP", "MaPLe", "CoOp", "VPT")):  # the middle two change places once
            accuracy = 90.0 - 5 * place + (12 if trainer == "CoOp" and number == 0 else 0)
            runs.add({"all": {"accuracy": accuracy}}, protocol="cross_dataset", dataset=dataset, trainer=trainer)
    (axes,) = figure_of("critical_difference", load_runs([runs.root])).axes
    average = {"BMIP": 8 / 7, "MaPLe": 15 / 7, "CoOp": 19 / 7, "VPT": 4.0}
    critical = 2.569 * (4 * 5 / (6 * 7)) ** 0.5
    assert texts_of(axes.figure)[:-1] == [f"{name}  {rank:.2f}" for name, rank in average.items()]
    assert texts_of(axes.figure)[-1] == f"critical difference {critical:.2f}"
    lines = [line.get_xdata().tolist() for line in axes.lines]
    ends = [pytest.approx([average[first], average[last]]) for first, last in (("BMIP", "CoOp"), ("CoOp", "VPT"))]
    assert lines[4:] == [*ends, pytest.approx([1, 1 + critical], abs=1e-3)]
    assert axes.get_title() == "accuracy (%): 4 methods on 7 data sets"


@pytest.mark.parametrize(
    ("datasets", "trainers", "message"),
    [(4, ("CoOp", "BMIP", "VPT"), "at least 5 data sets, there are 4"), (5, ("CoOp", "BMIP"), "at least 3 methods")],
)
def test_a_critical_difference_diagram_of_too_little_is_refused(runs, datasets, trainers, message):
    for dataset in "abcde"[:datasets]:
        for trainer in trainers:
            runs.add({"all": {"accuracy": 50.0}}, protocol="cross_dataset", dataset=dataset, trainer=trainer)
    with pytest.raises(PlotError, match=message):
        figure_of("critical_difference", load_runs([runs.root]))


def test_few_shot_curves_have_mean_and_band_and_the_zero_shot_level(runs_for):
    figure = figure_of("few_shot", runs_for("few_shot"))
    assert [axes.get_title() for axes in figure.axes] == ["Caltech101", "OxfordPets", "average of 2 data sets"]
    level, curve = figure.axes[0].lines
    assert set(level.get_ydata()) == {58.0}
    assert curve.get_xdata().tolist() == [1, 2, 4]
    assert curve.get_ydata().tolist() == [62.5 - 1 + 1, 63.5, 65.5]
    (band,) = figure.axes[0].collections
    low, high = band.get_paths()[0].vertices[:, 1].min(), band.get_paths()[0].vertices[:, 1].max()
    assert (low, high) == pytest.approx((62.5 - 0.5**0.5, 65.5 + 0.5**0.5))


def test_a_reliability_diagram_sums_the_seeds_bins(runs_for):
    panels = figure_of("reliability", runs_for("reliability")).axes
    assert [axes.get_title().replace("\n", " ") for axes in panels] == [
        "CoOp, Caltech101, class split base",
        "CoOp, OxfordPets, class split base",
    ]
    bars = [bar for bar in panels[0].patches if hasattr(bar, "get_height")]
    assert [(bar.get_x() + bar.get_width() / 2, bar.get_height()) for bar in bars] == [
        pytest.approx((50.0, 25.0)),
        pytest.approx((250 / 3, 100 * 52 / 64)),
    ]
    (shares,) = [patch for patch in panels[0].patches if hasattr(patch, "get_data")]
    assert shares.get_data().values.tolist() == [0.0, 20.0, 80.0]
    assert [text.get_text() for text in panels[0].texts] == ["ECE 11.5 % (n=2)"]


def test_a_reliability_diagram_needs_one_kind_of_bins(runs):
    for seed, bins in ((1, [3, 4]), (2, [3, 4, 5])):
        metrics = {"accuracy": 1.0, "calibration": {"bins": {"count": bins, "correct": bins}}}
        runs.add({"all": metrics}, seed=seed)
    with pytest.raises(PlotError, match="have different bins"):
        figure_of("reliability", load_runs([runs.root]))


def test_gain_bars_are_differences_to_the_baseline(runs):
    runs.add({"all": {"accuracy": 50.0}}, protocol="cross_dataset", trainer="ZeroshotCLIP", zero_shot=True)
    runs.add({"all": {"accuracy": 53.5}}, protocol="cross_dataset")
    runs.add({"all": {"accuracy": 49.0}}, protocol="cross_dataset", trainer="BMIP")
    loaded = load_runs([runs.root])
    panels = figure_of("gain", loaded).axes
    assert [(axes.get_title(), axes.patches[0].get_width()) for axes in panels] == [
        ("CoOp - ZeroshotCLIP", 3.5),
        ("BMIP - ZeroshotCLIP", -1.0),
    ]
    over_coop = figure_of("gain", loaded, Options(baseline="CoOp")).axes
    assert [axes.patches[0].get_width() for axes in over_coop] == [-3.5, -4.5]
    with pytest.raises(PlotError, match="no run of the baseline 'MaPLe'; there are: ZeroshotCLIP, CoOp, BMIP"):
        figure_of("gain", loaded, Options(baseline="MaPLe"))


def test_a_method_that_lacks_a_data_set_is_not_in_the_radar_and_that_is_said(runs):
    runs.add_experiment(datasets=THREE)
    runs.add(trainer="MaPLe", dataset="EuroSAT")
    figure = figure_of("radar", load_runs([runs.root]))
    assert "MaPLe: not drawn, lacks 2 data sets" in texts_of(figure)


def test_a_method_without_base_or_new_accuracy_is_not_drawn_and_that_is_said(runs):
    runs.add()
    runs.add({"base": {"accuracy": 70.0}}, trainer="MaPLe")
    assert texts_of(figure_of("base_new", load_runs([runs.root])))[-2:] == ["CoOp", "MaPLe: not drawn, lacks a number"]


@pytest.mark.parametrize("accuracy", [0.0, 50.0, 100.0])
def test_a_radar_of_equal_numbers_has_an_axis(runs, accuracy):
    for dataset in THREE:
        runs.add({"all": {"accuracy": accuracy}}, protocol="cross_dataset", dataset=dataset)
    (axes,) = figure_of("radar", load_runs([runs.root])).axes
    low, high = axes.get_ylim()
    assert low <= accuracy <= high
    assert low < high


def test_the_confusion_matrix_is_the_sum_over_seeds_in_percent_of_a_class(runs_for):
    (image,) = figure_of("confusion", runs_for("confusion")).axes[0].images
    # rows of seeds 1 and 2: 8 1 0 twice; 2 7 1 and 2 7 0; 0 0 9 twice
    np.testing.assert_allclose(image.get_array(), [[800 / 9, 100 / 9, 0], [400 / 19, 1400 / 19, 100 / 19], [0, 0, 100]])


def test_gate_lines_are_the_mean_over_seeds_with_a_band(runs_for):
    vision, text = figure_of("gates", runs_for("gates")).axes
    assert vision.get_title() == "BMIP, Caltech101: vision"
    assert text.get_title() == "BMIP, Caltech101: text"
    assert vision.lines[0].get_ydata() == pytest.approx([0.5, 0.6, 0.7])
    assert len(text.collections) == 1
    assert {axes.get_ylabel() for axes in (vision, text)} == {
        "gate: weight of the tower's\nown prompt, rest: projected"
    }


def test_every_image_and_class_name_is_in_the_tsne_plot(runs_for):
    (axes,) = figure_of("tsne", runs_for("tsne")).axes
    sizes = sorted(len(collection.get_offsets()) for collection in axes.collections)
    assert sizes[-3:] == [5, 5, 5]
    assert sum(sizes) == 15 + 3
    assert "15 images, 3 class names" in axes.get_title()


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("few_shot", "few-shot curves need runs of the few_shot protocol, these are of: Open-world"),
        ("radar", "at least three data sets, there are 1: digits"),
        ("gain", "no other method has a number on a data set where CoOp has one"),
        ("gates", "no run recorded gates: only BMIP"),
        ("curves", "no run has a training history"),
        ("confusion", "no run recorded a confusion matrix of class split 'all' or 'base' or 'new': "),
        ("reliability", "no run recorded the calibration of class split 'all' or 'base' or 'new': "),
        ("tsne", "features.npz: no such file; run with TEST.SAVE_FEATURES True"),
    ],
)
def test_what_is_missing_is_said_instead_of_an_empty_plot(runs, kind, message):
    runs.add()
    with pytest.raises(PlotError, match=message):
        draw_plot(kind, load_runs([runs.root]), "png")


@pytest.mark.parametrize("kind", ["confusion", "reliability"])
def test_a_class_split_that_was_chosen_is_the_only_one_looked_at(runs, kind):
    runs.add()
    with pytest.raises(PlotError, match="of class split 'new': "):
        figure_of(kind, load_runs([runs.root]), Options(split="new"))


def test_base_against_new_needs_both(runs):
    runs.add({"base": {"accuracy": 70.0}})
    with pytest.raises(PlotError, match="no method has base and new accuracy on every data set"):
        figure_of("base_new", load_runs([runs.root]))


def test_an_unknown_metric_is_refused_with_the_choices(runs):
    runs.add()
    with pytest.raises(PlotError, match="no metric 'f1' in Open-world generalization; choose from base, new, av"):
        figure_of("seeds", load_runs([runs.root]), Options(metric="f1"))


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut short", b"no zip at all", "content", "method"])
def test_damaged_features_are_named_and_leave_the_page_its_other_plots(runs, content):
    path = runs.add().with_name("features.npz")
    if isinstance(content, str):
        save_features(path.parent)
        damage(path, content)
    else:
        path.write_bytes(content)
    with pytest.raises(PlotError, match=f"{re.escape(str(path))} cannot be read"):
        draw_plot("tsne", load_runs([runs.root]), "png")
    target = runs.root / "report.html"
    assert main(["html", str(runs.root), "-o", str(target)]) == 0
    page = target.read_text(encoding="utf-8")
    assert "features.npz cannot be read" in page
    assert "<svg" in page


def test_features_are_never_unpickled(runs):
    path = runs.add().with_name("features.npz")
    np.savez(path, base_images=np.array([{"a": 1}], dtype=object))
    with pytest.raises(PlotError, match="cannot be read"):
        draw_plot("tsne", load_runs([runs.root]), "png")


def test_plots_of_one_thing_ask_which(runs):
    runs.add_experiment()
    with pytest.raises(PlotError, match="choose with --trainer .ZeroshotCLIP, CoOp, BMIP. and --dataset .Digits."):
        draw_plot("confusion", load_runs([runs.root]), "png")
    with pytest.raises(PlotError, match="t-SNE is of one run"):
        draw_plot("tsne", load_runs([runs.root]), "png")


@pytest.mark.parametrize("package", ["matplotlib", "sklearn"])
def test_a_missing_package_is_named_with_its_remedy(package, runs_for, monkeypatch):
    loaded = runs_for("tsne")
    for name in [name for name in sys.modules if name.split(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(PlotError, match="pip install (matplotlib|scikit-learn)"):
        draw_plot("tsne", loaded, "png")


def test_names_are_never_formulas_or_markup(runs):
    for trainer in ("$\\frac{", "<script>alert(1)</script>", "a_b^c & d"):
        runs.add(trainer=trainer, seed=1)
    svg = draw_plot("seeds", load_runs([runs.root]), "svg")
    ElementTree.fromstring(svg)
    assert b"<script>" not in svg


def test_methods_look_different():
    looks = [look(index) for index in range(15)]
    assert len({(style["color"], style["marker"], str(style["linestyle"])) for style in looks}) == 15
    assert len(set(COLOURS)) == len(COLOURS)


def line_looks(axes):
    """What can be told without colour, and with it, of every named line."""
    named = [line for line in axes.lines if not line.get_label().startswith("_")]
    return {
        line.get_label(): (line.get_color(), line._unscaled_dash_pattern, line.get_marker(), line.get_linewidth())
        for line in named
    }


EVERY = ("ZeroshotCLIP", "ZeroshotCLIP2", *sum(FAMILIES, ()), "Ours", "Ours2", "Theirs", "Another", "Fifth")


def test_a_trainer_has_its_colour_whatever_else_is_in_the_picture():
    trainers = list(dict.fromkeys(EVERY))
    together = dict(zip(trainers, looks(trainers), strict=True))
    assert len(trainers) == 27
    for first in trainers:
        for second in trainers:
            pair = looks([first, second])
            assert [style["color"] for style in pair] == [together[first]["color"], together[second]["color"]]
    assert len({(style["color"], style["linestyle"]) for style in together.values()}) == 27


def test_settings_of_a_trainer_share_its_colour_and_nothing_else():
    styles = looks(["MaPLe"] * 12 + ["MaPLe_BMIP", "BMIP"])
    assert len({style["color"] for style in styles}) == 2
    assert len({(style["color"], style["linestyle"]) for style in styles}) == 14
    assert styles[12:] == looks(["MaPLe_BMIP", "BMIP"])


@pytest.mark.parametrize("kind", ["base_new", "gain", "radar", "seeds", "curves"])
def test_two_methods_are_drawn_in_the_colours_that_many_have(runs, kind):
    runs.add_experiment(trainers=("CoOp", "MaPLe", "PromptSRC", "BMIP"), datasets=THREE)
    loaded = load_runs([runs.root])
    colour = looks(["BMIP"])[0]["color"].lower().encode()

    def drawn(*trainers):
        return draw_plot(kind, [run for run in loaded if run.trainer in trainers], "svg")

    assert colour in drawn("CoOp", "BMIP")
    assert colour in drawn("ZeroshotCLIP", "CoOp", "MaPLe", "PromptSRC", "BMIP")
    assert colour not in drawn("CoOp", "MaPLe")


def early_stopping(runs, ends=(2, 4, 5)):
    """Three seeds of which two stop early; a mean over those that are left would jump."""
    for seed, end in enumerate(ends, 1):
        history = [{"epoch": epoch, "loss": float(10 * seed)} for epoch in range(1, end + 1)]
        gates = {"per_epoch": [{"epoch": epoch, "vision/1": seed / 10} for epoch in range(1, end + 1)]}
        runs.add(trainer="BMIP", seed=seed, history=history, gates=gates)
    return load_runs([runs.root])


@pytest.mark.parametrize(("kind", "scale"), [("curves", 10), ("gates", 0.1)])
def test_a_mean_ends_where_the_first_seed_does_and_the_others_go_on_alone(runs, kind, scale):
    figure = figure_of(kind, early_stopping(runs))
    (axes,) = figure.axes
    mean, second, third, _ = axes.lines
    assert mean.get_xdata().tolist() == [1, 2]
    assert mean.get_ydata().tolist() == pytest.approx([2 * scale, 2 * scale])
    assert second.get_xdata().tolist() == [2, 3, 4]
    assert second.get_ydata() == pytest.approx(2 * scale)
    assert third.get_xdata().tolist() == [2, 3, 4, 5]
    assert third.get_ydata() == pytest.approx(3 * scale)
    assert second.get_linewidth() < mean.get_linewidth()
    assert "single seeds, after\nthe first one stopped" in texts_of(figure)


@pytest.mark.parametrize("kind", ["curves", "gates"])
def test_nothing_is_said_of_single_seeds_where_all_end_together(runs, kind):
    figure = figure_of(kind, early_stopping(runs, (3, 3, 3)))
    assert not any("single seeds" in text for text in texts_of(figure))
    assert len(figure.axes[0].lines) == 1


def test_seeds_without_a_common_epoch_are_drawn_each_alone(runs):
    for seed in (1, 2):
        runs.add(seed=seed, history=[{"epoch": epoch, "loss": 1.0} for epoch in (seed, seed + 2)])
    (axes,) = figure_of("curves", load_runs([runs.root])).axes
    assert sorted(tuple(line.get_xdata()) for line in axes.lines if len(line.get_xdata())) == [(1, 3), (2, 4)]


def few_shot_runs(runs):
    for trainer in ("CoOp", "BMIP"):
        for shots in (1, 2, 16):
            for seed in (1, 2):
                history = [{"epoch": epoch, "loss": shots + seed} for epoch in (1, 2)]
                gates = {"per_epoch": [{"epoch": epoch, "vision/1": 0.5} for epoch in (1, 2)]}
                metrics = {"all": {"accuracy": 60.0 + shots, "confusion": [[shots, 1], [0, shots]]}}
                runs.add(
                    metrics, protocol="few_shot", shots=shots, seed=seed, trainer=trainer, history=history,
                    gates=gates if trainer == "BMIP" else None,
                )  # fmt: skip
    return load_runs([runs.root])


def test_curves_of_several_shots_look_different_and_are_named(runs):
    (axes,) = figure_of("curves", few_shot_runs(runs)).axes
    styles = line_looks(axes)
    assert list(styles) == [
        f"{name}, {shots}" for name in ("CoOp", "BMIP") for shots in ("1 shot", "2 shots", "16 shots")
    ]
    assert len(set(styles.values())) == 6
    assert len({(marker, width) for _, _, marker, width in styles.values()}) == 3


def test_open_world_curves_of_several_shots_look_different_too(runs):
    for shots in (4, 16):
        runs.add(shots=shots, history=[{"epoch": 1, "loss": 1.0}])
    styles = line_looks(figure_of("curves", load_runs([runs.root])).axes[0])
    assert list(styles) == ["CoOp (4 shots)", "CoOp (16 shots)"]
    assert len({(marker, width) for _, _, marker, width in styles.values()}) == 2


def test_gates_of_several_shots_have_panels_of_their_own(runs):
    panels = figure_of("gates", few_shot_runs(runs)).axes
    assert [axes.get_title() for axes in panels] == [
        f"BMIP, digits, {shots}: vision" for shots in ("1 shot", "2 shots", "16 shots")
    ]


def test_a_confusion_matrix_is_of_one_number_of_shots(runs):
    few_shot_runs(runs)
    target = runs.root / "matrix.png"
    command = ["plot", "confusion", str(runs.root), "--trainer", "CoOp", "-o", str(target)]
    with pytest.raises(PlotError, match=r"of one number of shots: choose with --shots .1, 2, 16."):
        figure_of("confusion", [run for run in load_runs([runs.root]) if run.trainer == "CoOp"])
    assert main([*command, "--shots", "16"]) == 0
    assert target.exists()
    chosen = [run for run in load_runs([runs.root]) if (run.trainer, run.shots) == ("CoOp", 16)]
    assert figure_of("confusion", chosen).axes[0].get_title() == "CoOp, digits, class split all, 16 shots, 2 seeds"


def test_zero_shot_runs_stand_beside_any_chosen_number_of_shots(runs):
    few_shot_runs(runs)
    runs.add({"all": {"accuracy": 55.0}}, protocol="few_shot", shots=1, trainer="ZeroshotCLIP", zero_shot=True)
    kept = selected(load_runs([runs.root]), [], [], [], [2, 16])
    assert {(run.trainer, run.shots) for run in kept} == {
        *((trainer, shots) for trainer in ("CoOp", "BMIP") for shots in (2, 16)),
        ("ZeroshotCLIP", 1),
    }


def gain_runs(runs, base, own):
    for trainer, values in (("CoOp", base), ("BMIP", own)):
        for seed, accuracy in values.items():
            runs.add({"all": {"accuracy": accuracy}}, protocol="cross_dataset", trainer=trainer, seed=seed)
    return load_runs([runs.root])


@pytest.mark.parametrize(
    ("base", "own", "gain", "half", "said"),
    [
        ({1: 50.0, 2: 60.0, 3: 70.0}, {1: 53.0, 2: 64.0, 3: 75.0}, 4.0, 1.0, "+4.0 ± 1.0 (n=3)"),
        # the seeds that both have
        ({1: 50.0, 2: 60.0}, {2: 64.0, 1: 51.0, 3: 99.0}, 2.5, 4.5**0.5, "+2.5 ± 2.1 (n=2)"),
        ({1: 50.0, 2: 60.0}, {2: 59.0}, -1.0, None, "-1.0 (n=1)"),
        ({1: 50.0, 2: 60.0}, {3: 59.0}, 4.0, None, "+4.0 (unpaired, n=1 and 2)"),
    ],
)
def test_gains_have_the_spread_of_paired_seeds(runs, base, own, gain, half, said):
    (axes,) = figure_of("gain", gain_runs(runs, base, own), Options(baseline="CoOp")).axes
    assert axes.patches[0].get_width() == pytest.approx(gain)
    assert [text.get_text() for text in axes.texts] == [said]
    bars = [collection.get_segments()[0][:, 0] for collection in axes.collections]
    assert [(low + high) / 2 for low, high in bars] == ([pytest.approx(gain)] if half else [])
    assert [(high - low) / 2 for low, high in bars] == ([pytest.approx(half)] if half else [])


def test_the_radar_needs_no_colour_and_says_where_its_axis_begins(runs):
    trainers = ("CoOp", "CoCoOp", "VPT", "IVLP", "MaPLe", "PromptSRC", "CoPrompt", "MaPLe_BMIP", "BMIP")
    for dataset in THREE:
        for trainer in trainers:
            runs.add(
                {"all": {"accuracy": 62.0 + len(trainer)}}, protocol="cross_dataset", dataset=dataset, trainer=trainer
            )
    (axes,) = figure_of("radar", load_runs([runs.root])).axes
    styles = line_looks(axes)
    assert len({(dash, marker) for _, dash, marker, _ in styles.values()}) == len(trainers)
    assert axes.get_title() == "accuracy (%), from 62 at the centre to 72 at the rim"
    rings = [label.get_text() for label in axes.get_yticklabels()]
    assert rings[-5:] == ["64", "66", "68", "70", "72"]  # earlier versions of matplotlib write the centre's, too
    assert axes.get_ylim() == (62, 72)


KINDS_OF_MANY = ("few_shot", "base_new", "gain", "radar", "critical_difference", "seeds", "cost", "curves", "gates")


@pytest.mark.parametrize("kind", KINDS_OF_MANY)
def test_long_names_stay_inside_the_picture(runs, kind):
    names = [f"{letter * 12}_a_trainer_with_a_long_name" for letter in "WM"]
    datasets = [f"{letter}_data_set_whose_name_is_long_as_well" for letter in ("WWWWW", "B", "C")]
    datasets += ["D", "E"] if kind == "critical_difference" else []
    if kind == "few_shot":
        for shots in (1, 4):
            for name in names:
                runs.add(
                    {"all": {"accuracy": 60.0 + shots}}, protocol=kind, shots=shots, trainer=name, dataset=datasets[0]
                )
    else:
        runs.add_experiment(trainers=[f"{name}BMIP" for name in names], datasets=datasets, seeds=(1, 2))
    with style():
        figure = KINDS[kind].draw(load_runs([runs.root]), Options())
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        box = figure.get_tightbbox(canvas.get_renderer())  # inches
    width, height = figure.get_size_inches()
    assert box.x0 > -0.01
    assert box.y0 > -0.01
    assert box.x1 < width + 0.01
    assert box.y1 < height + 0.01


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-o", "{folder}/plot.pdf"], "the name must end in .png or .svg"),
        (["-o", "{folder}/plot.png", "--dpi", "5"], "--dpi must be between 10 and 1200"),
        (["-o", "{folder}/plot.png", "--trainer", "MaPLe"], "no run of trainer 'MaPLe'; there are: BMIP, CoOp, Zero"),
        (["-o", "{folder}/plot.png", "--dataset", "EuroSAT"], "no run on data set 'EuroSAT'; there are: Digits"),
        (["-o", "{folder}/plot.png", "--shots", "4"], "no run with 4 shots; there are: 16"),
        (
            ["-o", "{folder}/plot.png", "--trainer", "BMIP", "--seed", "9"],
            "no run fits --trainer, --dataset and --seed",
        ),
    ],
)
def test_bad_arguments_are_named(runs, capsys, arguments, message):
    runs.add_experiment()
    assert main(["plot", "seeds", str(runs.root), *(text.format(folder=runs.root) for text in arguments)]) == 2
    assert message in capsys.readouterr().err
    assert not list(runs.root.glob("plot.*"))


def test_the_command_draws_the_chosen_runs_and_replaces_nothing_unasked(runs, capsys):
    runs.add_experiment()
    target = runs.root / "plots" / "spread.svg"
    command = ["plot", "seeds", str(runs.root), "-o", str(target), "--trainer", "BMIP", "--dataset", "digits"]
    assert main(command) == 0
    drawn = target.read_bytes()
    chosen = [run for run in load_runs([runs.root]) if run.trainer == "BMIP"]
    assert drawn == draw_plot("seeds", chosen, "svg")
    target.write_text("mine")
    assert main(command) == 2
    assert target.read_text() == "mine"
    assert "--force" in capsys.readouterr().err
    assert main([*command, "--force"]) == 0
    assert target.read_bytes() == drawn


def test_twin_runs_and_mixed_protocols_are_refused(runs):
    runs.add()
    other = runs.add(protocol="few_shot", seed=2)
    with pytest.raises(ResultsError, match=re.escape(str(other))):
        draw_plot("seeds", load_runs([runs.root]), "png")
    other.unlink()
    copy = runs.root / "copy" / "results.json"
    copy.parent.mkdir()
    copy.write_text(twin(next(runs.root.rglob("results.json")).read_text()))
    with pytest.raises(ResultsError, match="two runs of CoOp"):
        draw_plot("seeds", load_runs([runs.root]), "png")


def test_tables_and_help_need_neither_matplotlib_nor_scipy(runs):
    runs.add()
    code = (
        "import sys; sys.modules.update(dict.fromkeys(('matplotlib', 'scipy', 'sklearn', 'numpy', 'torch')));"
        "from reporting.__main__ import main; sys.exit(main(sys.argv[1:]))"
    )
    for arguments in (["table", str(runs.root)], ["plot", "--help"]):
        done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, cwd=ROOT)
        assert done.returncode == 0, done.stderr
