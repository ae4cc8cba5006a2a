import json
from statistics import fmean

import pytest

from reporting.__main__ import main
from reporting.methods import dataset_order
from reporting.published import (
    AVERAGE,
    BMIP_AVERAGES_NOTE,
    MARKS,
    PUBLISHED_FILE,
    Entry,
    averaged,
    chosen_entries,
    load_published,
)
from reporting.stats import Summary, harmonic_mean
from reporting.table import build_table
from results.schema import canonical_dataset, load_runs
from sweeping.plan import SETTINGS

ELEVEN = [
    "ImageNet", "Caltech101", "OxfordPets", "StanfordCars", "OxfordFlowers", "Food101", "FGVCAircraft", "SUN397",
    "DescribableTextures", "EuroSAT", "UCF101",
]  # fmt: skip


ROUNDING = 0.02  # two decimals explain half of it, numbers rounded twice the rest


def entry(method, protocol="base_to_new", **facts):
    found = [entry for entry in load_published() if (entry.method, entry.protocol) == (method, protocol)]
    (only,) = [entry for entry in found if all(getattr(entry, key) == value for key, value in facts.items())]
    return only


def rows(table, title):
    block = next(block for block in table.blocks if block.title == title)
    return {row.method.label: row.cells for row in block.rows}


def contradictions(entry: Entry) -> dict[str, float]:
    """What an entry states otherwise than its own values have it, by more than rounding.

    H is the harmonic mean of base and new, that of averages too; another average is the mean over its data sets.
    """
    found = {}
    for metric, values in entry.values.items():
        for dataset, stated in values.items():
            if metric == "H":
                parts = [entry.value(part, dataset) for part in ("base", "new")]
                follows = harmonic_mean(*(part.mean for part in parts)) if all(parts) else None
            else:
                targets = averaged(values, entry.average_over) if dataset == AVERAGE else ()
                follows = fmean(values[name].mean for name in targets) if targets else None
            if follows is not None and abs(follows - stated.mean) > ROUNDING:
                found[f"{dataset} {metric}"] = round(follows, 2)
    return found


def test_every_value_of_the_collection_is_there_and_a_percentage():
    content = json.loads(PUBLISHED_FILE.read_text())
    values = [v for raw in content["entries"] for row in raw["values"].values() for v in row if v is not None]
    seeds = [
        v for raw in content["seed_studies"] for runs in raw["values"].values() for row in runs.values() for v in row
    ]
    assert (len(values), len(seeds)) == (1825, 480)
    assert all(0 < value < 100 for value in (*values, *seeds))


def test_every_entry_names_a_source_and_how_it_was_read():
    content = json.loads(PUBLISHED_FILE.read_text())
    assert {raw["source"] for raw in [*content["entries"], *content["seed_studies"]]} == set(content["sources"])
    assert all(source["title"] and source["read"] for source in content["sources"].values())
    assert all(raw["confidence"] in ("high", "medium") for raw in [*content["entries"], *content["seed_studies"]])


@pytest.mark.parametrize("entry", load_published(), ids=lambda entry: f"{entry.protocol} {entry.label}")
def test_what_contradicts_itself_in_a_source_has_a_note(entry):
    # a new one is a slip in copying, or one of the source's: then it goes into the entry's "contradictions"
    assert contradictions(entry) == entry.contradictions
    for place, follows in entry.contradictions.items():
        assert f"{place} is stated as" in entry.footnote
        assert f"give {follows:.2f}" in entry.footnote


def test_contradictions_that_are_known():
    known = {entry.label: entry.contradictions for entry in load_published() if entry.contradictions}
    assert known["PromptKD (transductive; tuned per data set)"]["ucf101 H"] == 85.83
    assert known["CoOp (re-run by DePT)"] == {"average base": 81.59, "average new": 69.99}
    assert known["CoCoOp (re-run by DePT)"] == {"average base": 80.70, "average new": 72.05}


def test_contradictions_beyond_rounding_are_found():
    def of(**values):
        values = {metric: {name: Summary(x) for name, x in row.items()} for metric, row in values.items()}
        return contradictions(Entry("base_to_new", "A", None, "", "high", values, average_over=2))

    assert of(base={"dtd": 80.0, "eurosat": 90.01, AVERAGE: 85.0}) == {}
    assert of(base={"dtd": 80.0, "eurosat": 90.0, AVERAGE: 85.03}) == {"average base": 85.0}
    assert of(base={"dtd": 80.0, AVERAGE: 85.03}) == {}  # the other one's value is not known
    # ImageNet is the source where the average is over all others
    assert of(all={"imagenet": 1.0, "dtd": 80.0, "eurosat": 90.0, AVERAGE: 84.0}) == {"average all": 85.0}
    assert of(base={"dtd": 60.0}, new={"dtd": 40.0}, H={"dtd": 50.0, "eurosat": 1.0}) == {"dtd H": 48.0}


def test_rows_with_other_data_or_a_setting_per_data_set_are_marked(runs):
    assert all(set(entry.marks) <= MARKS.keys() for entry in load_published())
    assert entry("PromptKD", "cross_dataset").marks == ["transductive"]
    runs.add(dataset="EuroSAT", protocol="base_to_new", trainer="CoPrompt")
    table = build_table(load_runs([runs.root]), published="measured")
    assert "CoPrompt (tuned per data set), published" in rows(table, "EuroSAT")
    assert f"tuned per data set: {MARKS['tuned per data set']}" in table.legend
    assert not any(line.startswith("transductive:") for line in table.legend)


def test_known_values():
    assert entry("CoOp", variant="").value("new", "EuroSAT").mean == 54.74
    assert entry("CLIP").trainer == "ZeroshotCLIP"
    assert entry("MaPLe", "cross_dataset", rerun=False).average("all").mean == 66.30
    assert entry("PromptSRC", "domain_generalization").value("all", "ImageNetSketch").mean == 49.55
    assert entry("MaPLe", variant="re-run by DePT").rerun
    assert entry("HiCroPL").average("H").mean == 81.75
    assert entry("DePT", variant="on PromptSRC").value("new", "UCF101").mean == 77.70
    assert entry("TCP", "cross_dataset").average("all").mean == 66.29
    assert entry("CoCoOp", "few_shot").average("4").mean == 71.21


def test_the_authors_seeds_show_the_spread_of_single_runs():
    study = entry("BMIP", count=240)
    base, new = study.value("base", "eurosat"), study.value("new", "EuroSAT")
    assert (base.mean, new.mean) == pytest.approx((92.46, 68.77), abs=0.02)
    assert (base.std, new.std) == pytest.approx((3.20, 8.36), abs=0.01)


def test_bmips_h_is_shown_as_stated_and_explained():
    bmip = entry("BMIP", count=None)
    base, new, h = (bmip.average(metric).mean for metric in ("base", "new", "H"))
    assert (base, new, h) == (83.47, 76.69, 79.04)
    assert round(harmonic_mean(base, new), 2) == 79.94
    assert "79.04" in BMIP_AVERAGES_NOTE
    assert "79.94" in BMIP_AVERAGES_NOTE
    assert bmip.average("average_H") is None


def test_both_conventions_of_h_where_values_per_data_set_are_published():
    assert entry("MaPLe", rerun=False).average("average_H").mean == pytest.approx(78.27, abs=0.005)
    both = [
        (published.average("new").mean, published.average("H").mean - own.mean)
        for published in load_published()
        if published.protocol == "base_to_new"
        and (own := published.average("average_H")) is not None
        # where the averages are not those of the data sets, they say nothing about the conventions
        and not any(place.startswith(AVERAGE) for place in published.contradictions)
    ]
    assert len(both) == 27
    # what the note on BMIP says of the gap between the conventions
    assert "0.1 to 0.8 apart, and at most 0.4 where new accuracy is above 73" in BMIP_AVERAGES_NOTE
    assert 0.1 <= min(gap for _, gap in both) < max(gap for _, gap in both) < 0.85
    assert max(gap for new, gap in both if new > 73) < 0.4


@pytest.mark.parametrize(
    ("name", "canonical"),
    [
        ("OxfordPets", "oxford_pets"),
        ("oxford_pets", "oxford_pets"),
        ("DescribableTextures", "dtd"),
        ("Flowers102", "oxford_flowers"),
        ("ImageNet-A", "imagenet_a"),
        ("ImageNetSketch", "imagenet_sketch"),
        ("MyOwn", "myown"),
    ],
)
def test_data_set_names_have_one_spelling(name, canonical):
    assert canonical_dataset(name) == canonical


def test_data_sets_are_in_the_literatures_order():
    assert sorted(["digits", "EuroSAT", "aaa", "ImageNet", "caltech101"], key=dataset_order) == [
        "ImageNet", "caltech101", "EuroSAT", "aaa", "digits",
    ]  # fmt: skip


def test_published_rows_stand_below_and_change_no_average(runs):
    for dataset in ("EuroSAT", "DescribableTextures"):
        runs.add(dataset=dataset, protocol="base_to_new", backbone="ViT-B/16")
    loaded = load_runs([runs.root])
    plain, table = build_table(loaded), build_table(loaded, published="measured")
    average = "average over 2 data sets"
    assert rows(table, average)["CoOp"] == rows(plain, average)["CoOp"]
    assert rows(table, average)["CoOp, published"]["base"] is None  # published averages are over 11 data sets
    assert rows(table, "EuroSAT")["CoOp, published"]["new"].mean == 54.74
    everything = rows(table, "published average over 11 data sets")
    assert everything["BMIP, published"]["H"].mean == 79.04
    assert everything["CoOp"]["base"] is None
    assert BMIP_AVERAGES_NOTE in table.legend
    assert any("LAMDASZ-ML/BMIP README.md (1f039b4)" in line for line in table.legend)


def test_the_same_data_sets_share_one_average(runs):
    for dataset in ELEVEN:
        runs.add(dataset=dataset, protocol="base_to_new", backbone="ViT-B/16")
    table = build_table(load_runs([runs.root]), published="measured")
    average = rows(table, "average over 11 data sets")
    assert (average["CoOp"]["base"].mean, average["CoOp, published"]["base"].mean) == (70.0, 82.69)
    assert not any(block.title.startswith("published") for block in table.blocks)


def test_data_sets_as_columns_get_published_rows_and_a_column(runs):
    for dataset in ("ImageNet", "EuroSAT", "DescribableTextures"):
        runs.add({"all": {"accuracy": 50.0}}, dataset=dataset, protocol="cross_dataset", source_dataset="ImageNet")
    (block,) = build_table(load_runs([runs.root]), published="measured").blocks
    row = next(row for row in block.rows if row.method.label == "CoOp, published").cells
    assert row["EuroSAT"].mean == 46.39
    assert row["average"] is None
    assert row["published average over 10 data sets"].mean == 63.88


@pytest.mark.parametrize(("choice", "rerun"), [("measured", False), ("all", True)])
def test_runs_by_others_are_shown_only_when_all_are_asked_for(runs, choice, rerun):
    runs.add(dataset="EuroSAT", protocol="base_to_new")
    labels = rows(build_table(load_runs([runs.root]), published=choice), "EuroSAT")
    assert ("CoOp (re-run by DePT), published" in labels) is rerun
    assert ("PromptKD (transductive; tuned per data set), published" in labels) is rerun


def test_a_published_method_is_known_by_its_name_or_by_that_of_the_trainer(runs):
    for trainer in ("TCP", "ZeroshotCLIP"):
        runs.add(dataset="EuroSAT", protocol="base_to_new", trainer=trainer)
    eurosat = rows(build_table(load_runs([runs.root]), published="measured"), "EuroSAT")
    assert eurosat["TCP, published"]["new"].mean == 74.73
    assert eurosat["CLIP, published"]["new"].mean == 64.05


def test_each_host_of_dept_has_its_own_published_row():
    chosen = [entry for entry in chosen_entries("base_to_new", SETTINGS, "measured") if entry.method == "DePT"]
    assert [(entry.trainer, entry.variant) for entry in chosen] == [
        ("CoOp_DePT", "on CoOp"), ("PromptSRC_DePT", "on PromptSRC"),
    ]  # fmt: skip


@pytest.mark.parametrize("datasets", [ELEVEN, ELEVEN[1:3]])
def test_few_shot_tables_have_published_averages_by_the_number_of_shots(runs, datasets):
    for dataset in datasets:
        for shots in (3, 4):
            runs.add({"all": {"accuracy": 50.0}}, protocol="few_shot", shots=shots, dataset=dataset)
    table = build_table(load_runs([runs.root]), published="measured")
    average = rows(table, f"{'' if datasets == ELEVEN else 'published '}average over 11 data sets")
    assert (average["CoOp, published"]["3"], average["CoOp, published"]["4"].mean) == (None, 74.02)
    assert "MaPLe, published" not in average
    everything = build_table(load_runs([runs.root]), group="metric", published="all")
    at_four = rows(everything, "4 shots")
    place = next(name for name in at_four["Linear probe, published"] if "average over 11" in name)
    assert at_four["Linear probe, published"][place].mean == 68.01


def test_what_is_not_known_is_said(runs):
    runs.add({"all": {"accuracy": 50.0}}, protocol="zero_shot", trainer="ZeroshotCLIP2", zero_shot=True)
    table = build_table(load_runs([runs.root]), published="measured")
    assert "Published values: none are known for these methods in this protocol." in table.legend


def test_open_world_tables_have_base_to_new_values_too(runs):
    runs.add(dataset="EuroSAT")
    eurosat = rows(build_table(load_runs([runs.root]), published="all"), "EuroSAT")
    assert eurosat["CoOp, published"]["base"].mean == 92.19
    assert any("ERF score" in label and row["auroc"] for label, row in eurosat.items())
    # which are another group's runs
    runs.add(dataset="EuroSAT", trainer="TCP")
    measured = rows(build_table(load_runs([runs.root]), published="measured"), "EuroSAT")
    assert [label for label in measured if label.startswith("TCP")] == ["TCP", "TCP, published"]


@pytest.mark.parametrize("file_format", ["md", "latex", "html", "csv", "json"])
def test_every_format_marks_published_rows(runs, capsys, file_format):
    runs.add(dataset="EuroSAT", protocol="base_to_new")
    assert main(["table", "--published", "--format", file_format, str(runs.root)]) == 0
    output = capsys.readouterr().out
    assert "CoOp, published" in output
    assert "zhengli97/PromptKD" in output


def test_rows_without_a_number_in_a_block_are_not_printed(runs, capsys):
    runs.add(dataset="digits")
    assert main(["table", "--published", str(runs.root)]) == 0
    first, second = capsys.readouterr().out.split("### published average over 11 data sets")
    assert "published [" not in first
    assert "| CoOp     |" in first
    assert "| CoOp     |" not in second
    assert "avg H |" in second
    assert "AUROC |" in first
    assert "AUROC |" not in second.split("\n- ")[0]
