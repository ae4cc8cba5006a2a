import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest

from reporting.__main__ import main
from reporting.plot import draw_plot
from reporting.plots import KINDS
from reporting.plots.data import Options
from reporting.plots.style import COLOURS, PlotError, look, style
from reporting.runs import ResultsError, load_runs
from tests.reporting.conftest import twin

ROOT = Path(__file__).resolve().parents[2]
THREE = ("Caltech101", "OxfordPets", "EuroSAT")


def save_features(folder, classes=3, per_class=5):
    draw = np.random.default_rng(0)
    centres = draw.normal(size=(classes, 8))
    labels = np.repeat(np.arange(classes), per_class)
    np.savez(
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
        elif kind in ("confusion", "tsne"):
            runs.add_experiment(trainers=("BMIP",), seeds=(1, 2) if kind == "confusion" else (1,))
            (runs.root / "open_world" / "ZeroshotCLIP" / "tiny_ep10" / "Digits" / "16" / "1" / "results.json").unlink()
            if kind == "tsne":
                save_features(next(runs.root.rglob("results.json")).parent)
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
            assert axes.get_ylabel()
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
        ("confusion", "no run recorded a confusion matrix of class split 'all'"),
        ("tsne", "features.npz: no such file; run with TEST.SAVE_FEATURES True"),
    ],
)
def test_what_is_missing_is_said_instead_of_an_empty_plot(runs, kind, message):
    runs.add()
    with pytest.raises(PlotError, match=message):
        draw_plot(kind, load_runs([runs.root]), "png")


def test_base_against_new_needs_both(runs):
    runs.add({"base": {"accuracy": 70.0}})
    with pytest.raises(PlotError, match="no method has base and new accuracy on every data set"):
        figure_of("base_new", load_runs([runs.root]))


def test_an_unknown_metric_is_refused_with_the_choices(runs):
    runs.add()
    with pytest.raises(PlotError, match="no metric 'f1' in Open-world generalization; choose from base, new, av"):
        figure_of("seeds", load_runs([runs.root]), Options(metric="f1"))


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut short", b"no zip at all"])
def test_damaged_features_are_named(runs, content):
    path = runs.add().with_name("features.npz")
    path.write_bytes(content)
    with pytest.raises(PlotError, match=re.escape(str(path))):
        draw_plot("tsne", load_runs([runs.root]), "png")


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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-o", "{folder}/plot.pdf"], "the name must end in .png or .svg"),
        (["-o", "{folder}/plot.png", "--dpi", "5"], "--dpi must be between 10 and 1200"),
        (["-o", "{folder}/plot.png", "--trainer", "MaPLe"], "no run of trainer 'MaPLe'; there are: BMIP, CoOp, Zero"),
        (["-o", "{folder}/plot.png", "--dataset", "EuroSAT"], "no run on data set 'EuroSAT'; there are: Digits"),
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
