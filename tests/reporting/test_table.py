import pytest

from reporting.table import build_table
from results.schema import ResultsError, load_runs
from tests.reporting.conftest import twin


def build(runs, protocol=None):
    return build_table(load_runs([runs.root]), protocol)


def cell(table, block, label, key):
    found = next(entry for entry in table.blocks if entry.title == block)
    row = next(row for row in found.rows if row.method.label == label)
    return row.cells[key]


def labels(table):
    return [row.method.label for row in table.blocks[0].rows]


def test_open_world_columns(runs):
    runs.add(runs.open_world_metrics(80.0, 60.0, 55.0, 44.0, 71.0, 33.0))
    table = build(runs)
    assert tuple(table.blocks[0].columns) == (
        "base",
        "new",
        "H",
        "average_H",
        "all",
        "open_H",
        "auroc",
        "openworld_auc",
    )
    means = [cell.mean for cell in table.blocks[0].rows[0].cells.values()]
    assert means == pytest.approx([80, 60, 480 / 7, 480 / 7, 55, 44, 71, 33])
    assert table.warnings == ()


def test_the_two_conventions_of_h(runs):
    runs.add(runs.open_world_metrics(100.0, 50.0), seed=1)
    runs.add(runs.open_world_metrics(50.0, 100.0), seed=2)
    table = build(runs)
    assert cell(table, "digits", "CoOp", "H").mean == pytest.approx(75.0)
    assert cell(table, "digits", "CoOp", "average_H").mean == pytest.approx(200 / 3)
    legend = " ".join(table.legend)
    assert "harmonic mean of the average base" in legend
    assert "average of each run's own H" in legend


@pytest.mark.parametrize(
    ("names", "explained"),
    [
        ((), ["base, new: ", "H: ", "all: ", "AUROC: "]),
        (("base", "new", "H"), ["base, new: ", "H: "]),
        (("openworld_auc", "average_H"), ["AUROC: ", "H: "]),
        (("fpr95", "all"), ["FPR95: ", "all: "]),
    ],
)
def test_the_legend_explains_the_metrics_that_are_shown(runs, names, explained):
    runs.add()
    legend = build_table(load_runs([runs.root]), metrics=names).legend
    starts = ("base, new: ", "H: ", "all: ", "AUROC: ", "FPR95: ")
    assert [start for line in legend for start in starts if line.startswith(start)] == explained


def test_rows_are_ordered_and_settings_shown_where_needed(runs):
    for trainer, setting in [("Unheard", "x"), ("MaPLe", "a"), ("BMIP", "a"), ("BMIP", "b"), ("CoOp", "a")]:
        runs.add(trainer=trainer, setting=setting)
    runs.add(trainer="ZeroshotCLIP", setting="z", zero_shot=True)
    assert labels(build(runs)) == ["ZeroshotCLIP", "CoOp", "MaPLe", "BMIP (a)", "BMIP (b)", "Unheard"]


def test_shots_and_backbones_are_shown_where_they_differ(runs):
    runs.add(trainer="ZeroshotCLIP", zero_shot=True)
    runs.add(shots=4)
    runs.add(shots=16)
    assert labels(build(runs)) == ["ZeroshotCLIP", "CoOp (4 shots)", "CoOp (16 shots)"]
    runs.add(trainer="MaPLe", shots=16, backbone="ViT-B/16")
    assert "MaPLe (ViT-B/16, 16 shots)" in labels(build(runs))


def test_zero_shot_has_no_deviation_and_needs_one_seed_only(runs):
    for seed in (1, 2, 3):
        runs.add(runs.open_world_metrics(70.0 + seed, 60.0), seed=seed)
    runs.add(runs.open_world_metrics(65.0, 66.0), trainer="ZeroshotCLIP", zero_shot=True)
    table = build(runs)
    zero_shot = cell(table, "digits", "ZeroshotCLIP", "base")
    assert (zero_shot.mean, zero_shot.std, zero_shot.deterministic) == (65.0, None, True)
    assert table.warnings == ()


def test_zero_shot_that_differs_between_seeds_is_reported(runs):
    first = runs.add(runs.open_world_metrics(65.0, 66.0), zero_shot=True, seed=1)
    second = runs.add(runs.open_world_metrics(65.5, 66.0), zero_shot=True, seed=2)
    table = build(runs)
    (warning,) = table.warnings
    assert "trains nothing, yet base, avg H differ on digits between" in warning
    assert str(first) in warning
    assert str(second) in warning
    assert cell(table, "digits", "CoOp", "base").std is not None


def test_a_missing_seed_is_warned_about_with_its_place(runs):
    for seed in (1, 2, 3):
        runs.add(seed=seed)
    for seed in (1, 3):
        path = runs.add(trainer="MaPLe", seed=seed)
    table = build(runs)
    (warning,) = table.warnings
    assert "MaPLe on digits: other rows have seed 2, this one only 1, 3" in warning
    assert str(path.parent.parent) in warning
    assert cell(table, "digits", "MaPLe", "base").seeds == (1, 3)


def test_a_method_without_a_data_set_is_shown_as_missing(runs):
    runs.add(dataset="digits")
    runs.add(dataset="emoji")
    runs.add(dataset="digits", trainer="MaPLe")
    table = build(runs)
    assert cell(table, "emoji", "MaPLe", "base") is None
    assert cell(table, "average over 2 data sets", "MaPLe", "base") is None
    assert cell(table, "average over 2 data sets", "CoOp", "base").mean == 70.0
    assert table.warnings == ("MaPLe has no run on emoji",)


def test_average_block_recomputes_h_from_the_averages(runs):
    runs.add(runs.open_world_metrics(100.0, 50.0), dataset="digits")
    runs.add(runs.open_world_metrics(50.0, 100.0), dataset="emoji")
    table = build(runs)
    assert cell(table, "average over 2 data sets", "CoOp", "H").mean == pytest.approx(75.0)
    assert cell(table, "average over 2 data sets", "CoOp", "average_H").mean == pytest.approx(200 / 3)


def test_a_number_that_a_run_does_not_hold_is_named(runs):
    runs.add(seed=1)
    path = runs.add({"base": {"accuracy": 71.0}, "new": {"accuracy": 61.0}}, seed=2)
    table = build(runs)
    assert table.warnings == (f"{path} holds no all, open-H, AUROC, OpenworldAUC",)
    assert cell(table, "digits", "CoOp", "all").n == 1
    assert cell(table, "digits", "CoOp", "base").n == 2
    runs.add({"base": {"accuracy": 70.0}, "new": {"accuracy": 60.0}}, seed=3)
    assert build(runs).warnings == (f"{path} and 1 more hold no all, open-H, AUROC, OpenworldAUC",)


def test_few_shot_columns_are_shots(runs):
    for shots, accuracy in [(16, 80.0), (1, 60.0), (4, 70.0)]:
        runs.add({"all": {"accuracy": accuracy}}, protocol="few_shot", shots=shots, train_classes="all")
    runs.add({"all": {"accuracy": 65.0}}, protocol="few_shot", shots=4, trainer="MaPLe")
    table = build(runs)
    assert tuple(table.blocks[0].columns) == ("1", "4", "16")
    assert [cell.mean for cell in table.blocks[0].rows[0].cells.values()] == [60.0, 70.0, 80.0]
    assert cell(table, "digits", "MaPLe", "16") is None
    assert table.warnings == ("MaPLe has no run on digits, 1 shot; digits, 16 shots",)


@pytest.mark.parametrize("protocol", ["cross_dataset", "domain_generalization"])
def test_data_sets_are_columns_and_the_source_stays_out_of_the_average(runs, protocol):
    for dataset, accuracy in [("emoji", 40.0), ("imagenet", 90.0), ("digits", 60.0)]:
        runs.add({"all": {"accuracy": accuracy}}, protocol=protocol, dataset=dataset, source_dataset="imagenet")
    (block,) = build(runs).blocks
    assert tuple(block.columns.values()) == ("imagenet (source)", "digits", "emoji", "average")
    assert [cell.mean for cell in block.rows[0].cells.values()] == [90.0, 60.0, 40.0, 50.0]


def test_selection_rules_are_stated(runs):
    runs.add()
    assert "Selection rule: last_step." in build(runs).legend
    runs.add(trainer="MaPLe", selection_rule="best_val")
    assert "Selection rules: CoOp: last_step; MaPLe: best_val." in build(runs).legend


def test_mixed_selection_rules_within_a_row_are_warned_about(runs):
    first = runs.add(seed=1)
    second = runs.add(seed=2, selection_rule="best_val")
    (warning,) = build(runs).warnings
    assert warning == f"CoOp mixes selection rules (best_val: {second}; last_step: {first})"


def test_different_split_files_are_warned_about(runs):
    first = runs.add(seed=1)
    second = runs.add(seed=2, data={"split_sha256": "bb"})
    assert build(runs).warnings == (f"runs on digits use different split files: {first}, {second}",)


def on_split(name):
    return {"config": {"SEED": 1, "TEST": {"SPLIT": name}}, "overrides": {"TEST.SPLIT": name} if name == "val" else {}}


def test_runs_on_validation_images_are_rows_of_their_own(runs):
    runs.add(seed=1, **on_split("test"))
    runs.add(seed=2, **on_split("val"))
    table = build(runs)
    assert labels(table) == ["CoOp (TEST.SPLIT test)", "CoOp (TEST.SPLIT val)"]
    assert "CoOp (TEST.SPLIT val): changed: TEST.SPLIT val." in table.legend


def test_methods_on_validation_and_on_test_images_are_warned_about(runs):
    tested = runs.add(**on_split("test"))
    runs.add(trainer="MaPLe")  # of a version that did not record it
    assert build(runs).warnings == ()
    validated = runs.add(trainer="BMIP", **on_split("val"))
    said = "some runs are tested on validation images, others on test images (TEST.SPLIT)"
    assert build(runs).warnings == (f"{said}: {tested}, {validated}",)


def test_different_weights_under_one_name_are_warned_about(runs):
    model = {"trainable_parameters": 512, "trainable_tensors": {}}
    first = runs.add(seed=1, model={**model, "backbone_sha256": "aa"})
    runs.add(seed=2, model=model)  # of a version that wrote no fingerprint
    assert build(runs).warnings == ()
    third = runs.add(seed=3, model={**model, "backbone_sha256": "bb"})
    (warning,) = build(runs).warnings
    assert warning.startswith("runs have different weights for the backbone ")
    assert warning.endswith(f": {first}, {third}")


def test_the_bundled_model_is_called_a_demonstration_and_not_set_beside_others(runs):
    legend = "A bundled backbone is a small demonstration model: not comparable with any published number."
    small = runs.add(seed=1)
    table = build(runs)
    assert legend in table.legend
    assert table.warnings == ()
    full = runs.add(trainer="MaPLe", backbone="ViT-B/16")
    (warning,) = build(runs).warnings
    assert warning.startswith("the bundled demonstration model stands beside other backbones")
    assert warning.endswith(f"{small}, {full}")
    small.unlink()
    assert legend not in build(runs).legend


def test_mixed_protocols_are_refused_with_paths(runs):
    first, second = runs.add(), runs.add(protocol="few_shot")
    with pytest.raises(ResultsError, match="several protocols cannot share a table") as raised:
        build(runs)
    assert str(first) in str(raised.value)
    assert str(second) in str(raised.value)
    with pytest.raises(ResultsError, match="runs of other protocols cannot stand in a open_world table") as raised:
        build(runs, "open_world")
    assert str(second) in str(raised.value)
    assert str(first) not in str(raised.value)


def test_long_lists_of_foreign_runs_are_cut(runs):
    for seed in range(5):
        runs.add(protocol="few_shot", seed=seed)
    with pytest.raises(ResultsError, match="few_shot: and 2 more"):
        build(runs, "open_world")


def test_open_world_runs_can_stand_in_a_base_to_new_table(runs):
    runs.add()
    assert tuple(build(runs, "base_to_new").blocks[0].columns) == ("base", "new", "H", "average_H")


def test_an_unknown_protocol_is_named(runs):
    path = runs.add(protocol="chess")
    with pytest.raises(ResultsError, match="no table for protocol 'chess'; known: open_world, ") as raised:
        build(runs)
    assert str(path) in str(raised.value)


def test_two_runs_with_nothing_to_tell_them_apart_are_refused(runs):
    first = runs.add()
    copy = runs.root / "copy" / "results.json"
    copy.parent.mkdir()
    copy.write_text(twin(first.read_text()))
    with pytest.raises(ResultsError, match=r"two runs of CoOp \(tiny_ep10\) on digits, 16 shots, seed 1") as raised:
        build(runs)
    assert str(first) in str(raised.value)
    assert str(copy) in str(raised.value)
