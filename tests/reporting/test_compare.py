import csv
import io
import json
import re
from statistics import fmean

import pytest
from scipy import stats

from reporting.__main__ import main
from reporting.compare import against_all, build_comparison, p_text, sentence
from reporting.stats import MIN_PAIRS, Pair, compare_pairs, holm
from results.schema import ResultsError, load_runs
from tests.reporting.conftest import twin


def pairs_of(*differences, datasets=("digits",)):
    return [
        Pair(datasets[index % len(datasets)], 16, index, 60.0, 60.0 + difference)
        for index, difference in enumerate(differences)
    ]


def compare(runs, first="CoOp", second="BMIP"):
    return build_comparison(load_runs([runs.root]), first, second)


def line(comparison, key):
    return next(line for line in comparison.lines if line.key == key)


def test_interval_and_t_test_are_students():
    differences = [1.0, 2.5, -0.5, 3.0, 1.5, 0.2]
    result = compare_pairs(pairs_of(*differences))
    low, high = stats.t.interval(0.95, 5, sum(differences) / 6, stats.sem(differences))
    assert (result.interval.low, result.interval.high) == pytest.approx((low, high))
    assert result.p_t == pytest.approx(stats.ttest_1samp(differences, 0).pvalue)


@pytest.mark.parametrize("differences", [[1.0, 2.5, -0.5, 3.0, 1.5, 0.2], [3.0, -2.0, 1.0]])
def test_the_signed_rank_test_is_exact(differences):
    expected = stats.wilcoxon(differences, method="exact").pvalue
    assert compare_pairs(pairs_of(*differences)).p_signed_rank == pytest.approx(expected)


def test_ties_and_zeros_in_the_signed_rank_test():
    # |1| four times, a zero left out: 2^4 signs, of which 1 + 4 have at most one minus
    assert compare_pairs(pairs_of(1.0, 1.0, 1.0, -1.0, 0.0)).p_signed_rank == pytest.approx(2 * 5 / 16)
    assert compare_pairs(pairs_of(0.0, 0.0, 0.0)).p_signed_rank == 1.0


def test_many_pairs_are_tested_too():
    differences = [0.3 + (-1) ** index * index / 50 for index in range(80)]
    expected = stats.wilcoxon(differences, method="asymptotic").pvalue
    assert compare_pairs(pairs_of(*differences)).p_signed_rank == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize(
    ("differences", "claim"),
    [
        ([5.0, 5.1, 4.9, 5.2, 5.0], False),  # five pairs: the signed-rank test cannot tell
        ([5.0, 5.1, 4.9, 5.2, 5.0, 5.3], True),
        ([5.0, 5.1, 4.9, -5.2, 5.0, 5.3], False),
        ([-5.0, -5.1, -4.9, -5.2, -5.0, -5.3], True),
        ([5.0] * 8, False),  # no spread to judge by
        ([5.0], False),
    ],
)
def test_a_difference_is_claimed_only_where_both_tests_say_so(differences, claim):
    assert compare_pairs(pairs_of(*differences)).claim is claim


def test_six_pairs_are_the_fewest_that_can_show_anything():
    fewest = compare_pairs(pairs_of(*(1.0 + n / 10 for n in range(MIN_PAIRS))))
    one_less = compare_pairs(pairs_of(*(1.0 + n / 10 for n in range(MIN_PAIRS - 1))))
    assert fewest.p_signed_rank < 0.05 < one_less.p_signed_rank


def test_the_sentence_of_a_claim_says_how_far_it_reaches(runs):
    runs.add_experiment(datasets=("Caltech101", "OxfordPets", "EuroSAT"))
    said = line(compare(runs), "new").sentence
    assert said.startswith(
        "On new classes: mean difference (BMIP minus CoOp) +2.8 points, 95 % interval +2.5 to +3.0, "
    )
    assert "BMIP higher in 9 of 9 pairs. Data sets: 3 won, 0 tied, 0 lost. Paired t-test p = " in said
    assert "n = 9: BMIP is higher at the 5 % level by both tests. It holds over the 3 data sets' averages too" in said
    said = line(compare(runs, "BMIP", "CoOp"), "new").sentence
    assert "(CoOp minus BMIP) -2.8 points" in said
    assert "CoOp is lower at the 5 % level by both tests." in said


def test_the_sentence_without_a_claim(runs):
    for seed, (first, second) in enumerate([(60.0, 62.0), (61.0, 60.0), (59.0, 61.5)]):
        runs.add({"all": {"accuracy": first}}, protocol="cross_dataset", seed=seed)
        runs.add({"all": {"accuracy": second}}, protocol="cross_dataset", seed=seed, trainer="BMIP")
    assert line(compare(runs), "all").sentence == (
        "Over all classes: mean difference (BMIP minus CoOp) +1.2 points, 95 % interval -3.5 to +5.9, BMIP higher in 2 "
        "of 3 seeds. Paired t-test p = 0.398, Wilcoxon signed-rank test p = 0.5, n = 3: this shows no difference at "
        "the 5 % level (the signed-rank test needs 6 pairs to get there)."
    )
    turned = line(compare(runs, "BMIP", "CoOp"), "all").sentence
    assert turned.startswith(
        "Over all classes: mean difference (CoOp minus BMIP) -1.2 points, 95 % interval -5.9 to +3.5"
    )


def said_of(*differences, **pairs):
    return sentence(compare_pairs(pairs_of(*differences, **pairs)), "on new classes", "CoOp", "BMIP")


@pytest.mark.parametrize(
    ("differences", "said"),
    [
        (
            [5.0, 5.1, 4.9, 5.2, 5.0],
            "only the t-test is below the 5 % level, so that no difference is claimed (the signed",
        ),
        ([0.01, -0.03, 0.02], "mean difference (BMIP minus CoOp) 0.0 points"),
        ([1.0, 0.0, -2.0, 0.0], "BMIP higher in 1 of 4 seeds and equal in 2."),
        ([5.0] * 8, "difference (BMIP minus CoOp) +5.0 points in each of 8 seeds: there is no spread to test by"),
        ([0.0] * 8, "BMIP and CoOp are equal in all 8 seeds: no difference was measured."),
        ([1.0, 1.1, -2.0, 3.0, 1.0, 0.4, -0.2], "n = 7: this shows no difference at the 5 % level."),
        ([2.0], "difference (BMIP minus CoOp) +2.0 points, n = 1 seed: one seed shows no spread"),
    ],
)
def test_a_sentence_says_what_was_measured_and_then_what_it_allows(differences, said):
    assert said in said_of(*differences)
    assert said_of(*differences).startswith("On new classes: ")


@pytest.mark.parametrize(
    "differences", [[3.0, 3.5, 2.7], [3.0], [3.0, 3.0], [3.0, 3.1, 2.9, 3.0, 3.2], [9.0, -8.0] * 5]
)
def test_no_sentence_calls_a_method_better_and_then_takes_it_back(differences):
    assert not compare_pairs(pairs_of(*differences)).claim
    assert not re.search("better|worse|BMIP is (higher|lower)", said_of(*differences))


def test_pairs_over_several_data_sets_are_not_called_seeds():
    assert "BMIP higher in 3 of 4 pairs." in said_of(1.0, 2.0, -1.0, 3.0, datasets=("digits", "emoji"))


@pytest.mark.parametrize(("p", "shown"), [(0.0498, "0.0498"), (0.5, "0.5"), (1.0, "1"), (6.33e-17, "6e-17")])
def test_p_values_are_rounded_neither_to_the_level_nor_to_0(p, shown):
    assert p_text(p) == shown


def test_one_pair_and_equal_methods(runs):
    runs.add({"all": {"accuracy": 60.0}}, protocol="cross_dataset")
    runs.add({"all": {"accuracy": 60.0}}, protocol="cross_dataset", trainer="BMIP")
    assert line(compare(runs), "all").sentence == (
        "Over all classes: difference (BMIP minus CoOp) 0.0 points, n = 1 seed: one seed shows no spread, so that no "
        "difference can be claimed."
    )


def test_a_claim_that_the_data_sets_do_not_bear_out_is_about_these_data_sets(runs):
    for dataset, gain in (("digits", 8.0), ("emoji", 1.0)):
        for seed in range(4):
            runs.add({"all": {"accuracy": 60.0}}, protocol="cross_dataset", dataset=dataset, seed=seed)
            second = {"all": {"accuracy": 60.0 + gain + seed / 10}}
            runs.add(second, protocol="cross_dataset", dataset=dataset, seed=seed, trainer="BMIP")
    said = line(compare(runs), "all").sentence
    assert "both tests. It is about these 2 data sets, not about data sets in general (95 % interval over their" in said


def test_runs_without_a_counterpart_are_left_out_and_named(runs):
    runs.add_experiment(seeds=(1, 2))
    lonely = runs.add(trainer="BMIP", dataset="Digits", seed=7)
    comparison = compare(runs)
    assert line(comparison, "base").result.interval.n == 2
    (warning,) = comparison.warnings
    assert warning.startswith("left out: one run of BMIP has no counterpart of CoOp: Digits, 16 shots, seed 7 (")
    assert str(lonely) in warning
    runs.add(trainer="BMIP", dataset="Digits", seed=8)
    (warning,) = compare(runs).warnings
    assert warning.startswith("left out: 2 runs of BMIP have no counterpart of CoOp: first Digits, 16 shots, seed 7 (")


def test_zero_shot_stands_for_every_seed(runs):
    runs.add_experiment()
    comparison = compare(runs, "ZeroshotCLIP", "BMIP")
    assert line(comparison, "base").result.interval.n == 3
    assert "ZeroshotCLIP trains nothing: its number stands for every seed." in comparison.legend
    assert comparison.warnings == ()


def test_few_shot_runs_are_compared_at_each_number_of_shots(runs):
    for shots in (1, 4):
        for seed in (1, 2):
            runs.add({"all": {"accuracy": 50.0 + seed}}, protocol="few_shot", shots=shots, seed=seed)
            second = {"all": {"accuracy": 51.0 + shots + 2 * seed}}
            runs.add(second, protocol="few_shot", shots=shots, seed=seed, trainer="BMIP")
    assert [(line.label, line.result.interval.mean) for line in compare(runs).lines] == [
        ("all, 1 shot", 3.5),
        ("all, 4 shots", 6.5),
    ]


def test_different_splits_and_selection_rules_are_warned_about(runs):
    runs.add()
    runs.add(trainer="BMIP", selection_rule="best_val", data={"split_sha256": "bb"})
    splits, rules = compare(runs).warnings
    assert splits.startswith("runs on digits use different split files")
    assert rules.startswith("the two choose their weights by different rules (CoOp: last_step; BMIP: best_val)")


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        ("CoOp", "MaPLe", "'MaPLe' fits no method: CoOp/tiny_ep10"),
        ("CoOp", "CoOp/tiny_ep10", "are the same method: CoOp"),
        ("CoOp", "BMIP", "'BMIP' fits several methods: BMIP/a .BMIP .a..; BMIP/b"),
        (
            "BMIP/a",
            "BMIP/b",
            "share no data set, shots and seed .the first: digits, 16 shots, seed 1; the second: em",
        ),
    ],
)
def test_names_that_do_not_fit_are_refused(runs, first, second, message):
    runs.add()
    runs.add(trainer="BMIP", setting="a")
    runs.add(trainer="BMIP", setting="b", dataset="emoji")
    with pytest.raises(ResultsError, match=message):
        compare(runs, first, second)


def test_mixed_protocols_and_twin_runs_are_refused(runs, capsys):
    runs.add_experiment(seeds=(1,))
    foreign = runs.add({"all": {"accuracy": 1.0}}, protocol="few_shot")
    assert main(["compare", "CoOp", "BMIP", str(runs.root)]) == 2
    assert str(foreign) in capsys.readouterr().err
    foreign.unlink()
    original = runs.add(dataset="Digits", seed=1)
    copy = runs.root / "copy" / "results.json"
    copy.parent.mkdir()
    copy.write_text(twin(original.read_text()))
    assert main(["compare", "CoOp", "BMIP", str(runs.root)]) == 2
    assert "two runs of CoOp" in capsys.readouterr().err


def test_every_format(runs, capsys):
    runs.add_experiment()

    def output(file_format):
        assert main(["compare", "CoOp", "BMIP", "--format", file_format, str(runs.root)]) == 0
        return capsys.readouterr().out

    assert "| base         |" in output("md")
    assert "- On base classes: mean difference (BMIP minus CoOp) " in output("md")
    assert r"\begin{table}" in output("latex")
    assert '<table class="sortable">' in output("html")
    content = json.loads(output("json"))
    rows = list(csv.DictReader(io.StringIO(output("csv"))))
    assert [row["metric"] for row in rows] == [metric["metric"] for metric in content["metrics"]]
    base = content["metrics"][0]
    assert len(base["pairs"]) == 3
    assert float(rows[0]["difference"]) == pytest.approx(sum(pair["difference"] for pair in base["pairs"]) / 3)
    means = [float(rows[0][f"mean_{side}"]) for side in ("first", "second")]
    assert means[1] - means[0] == pytest.approx(float(rows[0]["difference"]))


def test_a_file_is_not_replaced_unasked(runs, tmp_path, capsys):
    runs.add_experiment(seeds=(1, 2))
    target = tmp_path / "comparison.md"
    command = ["compare", "CoOp", "BMIP", str(runs.root), "-o", str(target)]
    assert main(command) == 0
    before = target.read_text()
    assert main(command) == 2
    assert "--force" in capsys.readouterr().err
    assert main([*command, "--force"]) == 0
    assert target.read_text() == before


def test_one_method_against_every_other_is_a_row_for_each(runs, capsys):
    datasets = ("Caltech101", "OxfordPets", "EuroSAT")
    runs.add_experiment(trainers=("CoOp", "MaPLe", "BMIP"), datasets=datasets)
    assert main(["compare", "BMIP", "all", str(runs.root), "--metrics", "new,base", "--format", "json"]) == 0
    written = json.loads(capsys.readouterr().out)
    assert [pair["first"] for pair in written["comparisons"]] == ["ZeroshotCLIP", "CoOp", "MaPLe"]
    for pair in written["comparisons"]:
        assert pair["second"] == "BMIP"
        assert [metric["metric"] for metric in pair["metrics"]] == ["new", "base"]
        alone = compare(runs, first=pair["first"])
        for metric in pair["metrics"]:
            assert metric["difference"]["mean"] == line(alone, metric["metric"]).result.interval.mean
    assert main(["compare", "BMIP", "all", str(runs.root), "--metrics", "new"]) == 0
    shown = capsys.readouterr().out
    result = line(compare(runs, first="MaPLe"), "new").result
    (row,) = [text for text in shown.splitlines() if text.startswith("| MaPLe")]
    assert result.claim
    assert f"{result.interval.mean:+.1f} ({result.interval.low:+.1f} to {result.interval.high:+.1f}) \\* |" in row


def test_holms_correction_of_a_worked_example():
    # 4 x 0.005, 3 x 0.01, 2 x 0.03, and 1 x 0.04, which may not come below the one before it
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.4, 0.9]) == [0.8, 0.9]
    assert holm([]) == []


def test_against_all_a_difference_is_claimed_after_holms_correction_only(runs, capsys):
    for seed, difference in enumerate([2.0, 1.5, 0.8, 2.2, 1.0, -0.6, 1.4, 0.5, 0.9, -0.7]):
        for number in range(12):  # the first rival is far below, the others are as the spread says
            gain = 9.0 + difference if number == 0 else difference
            runs.add({"all": {"accuracy": 60.0 - gain}}, protocol="cross_dataset", seed=seed, trainer=f"M{number:02}")
        runs.add({"all": {"accuracy": 60.0}}, protocol="cross_dataset", seed=seed, trainer="BMIP")
    alone = line(compare(runs, "M01", "BMIP"), "all")
    assert alone.claim_holm
    assert 0.05 / 12 < alone.result.p < 0.05
    assert main(["compare", "BMIP", "all", str(runs.root), "--format", "csv"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [row["claim"] for row in rows] == ["True"] * 12
    assert [row["claim_holm"] for row in rows] == ["True"] + ["False"] * 11
    assert float(rows[0]["p_holm"]) == pytest.approx(12 * max(float(rows[0]["p_t"]), float(rows[0]["p_signed_rank"])))
    assert main(["compare", "BMIP", "all", str(runs.root)]) == 0
    shown = capsys.readouterr().out
    assert "all: measured higher than 12 of 12 methods, lower than 0. Claimed: higher than M00." in shown
    assert [text.split()[1] for text in shown.splitlines() if text.endswith("\\* |")] == ["M00"]


def test_the_average_over_data_sets_has_an_interval_over_seeds_and_one_over_data_sets(runs, capsys):
    gains = {"a": (2.0, 3.0, 1.0), "b": (0.06, 0.02, 0.04), "c": (-1.0, 0.0, -1.1)}
    for dataset, differences in gains.items():
        for seed, difference in enumerate(differences):
            runs.add({"all": {"accuracy": 60.0}}, protocol="zero_shot", dataset=dataset, seed=seed)
            second = {"all": {"accuracy": 60.0 + difference}}
            runs.add(second, protocol="zero_shot", dataset=dataset, seed=seed, trainer="BMIP")
    runs.add({"all": {"accuracy": 60.0}}, protocol="zero_shot", dataset="a", seed=9)  # a seed of one data set only
    runs.add({"all": {"accuracy": 66.0}}, protocol="zero_shot", dataset="a", seed=9, trainer="BMIP")
    result = line(compare(runs), "all").result
    averages = [fmean(column) for column in zip(*gains.values(), strict=True)]
    assert (result.by_seed.low, result.by_seed.high) == pytest.approx(
        stats.t.interval(0.95, 2, fmean(averages), stats.sem(averages))
    )
    means = [3.0, 0.04, -0.7]
    assert (result.by_dataset.low, result.by_dataset.high) == pytest.approx(
        stats.t.interval(0.95, 2, fmean(means), stats.sem(means))
    )
    assert result.won_tied_lost() == (1, 1, 1)
    assert "Data sets: 1 won, 1 tied, 1 lost." in line(compare(runs), "all").sentence
    assert main(["compare", "CoOp", "BMIP", str(runs.root)]) == 0
    (row,) = [text for text in capsys.readouterr().out.splitlines() if "(n=3)" in text]
    assert re.search(r"\| all +\| +\+0.78 \| +\S+ to \S+ \(n=3\) \| +\S+ to \S+ \(n=3\) \| +1 \| +1 \| +1 \|", row)


@pytest.mark.parametrize("protocol", ["cross_dataset", "domain_generalization"])
def test_a_transfers_source_enters_no_difference(runs, protocol):
    for dataset, gain in (("imagenet", 9.0), ("a", 1.0), ("b", 2.0)):
        for seed in (1, 2):
            source = {} if dataset == "imagenet" else {"source_dataset": "imagenet"}
            changes = source | {"protocol": protocol, "dataset": dataset, "seed": seed}
            runs.add({"all": {"accuracy": 60.0}}, **changes)
            runs.add({"all": {"accuracy": 60.0 + gain + seed / 10}}, trainer="BMIP", **changes)
    comparison = compare(runs)
    result = line(comparison, "all").result
    assert (len(result.pairs), list(result.datasets)) == (4, ["a", "b"])
    assert result.interval.mean == result.by_dataset.mean == result.by_seed.mean == pytest.approx(1.65)
    assert comparison.legend[0].endswith(" The source data set is left out.")
    loaded = load_runs([runs.root])
    (only,) = against_all(loaded, "BMIP").grids[0].lines
    assert (only.numbers[0].value, only.numbers[1].value) == (4, pytest.approx(1.65))
    assert against_all(loaded, "BMIP").notes[0].endswith(" The source data set is left out.")
    apart = [run for run in loaded if run.dataset == {"CoOp": "a", "BMIP": "b"}[run.trainer] or not run.source_dataset]
    with pytest.raises(ResultsError, match="share no target data set, shots and seed"):
        build_comparison(apart, "CoOp", "BMIP")


def test_of_an_error_the_lower_one_wins():
    result = compare_pairs(pairs_of(-1.0, -2.0, 0.5, datasets=("a", "b", "c")))
    assert (result.won_tied_lost(), result.won_tied_lost(lower=True)) == ((1, 0, 2), (2, 0, 1))


def test_a_method_without_rivals_cannot_be_compared_with_all(runs):
    runs.add(trainer="BMIP")
    with pytest.raises(ResultsError, match="BMIP is the only method of these runs"):
        against_all(load_runs([runs.root]), "BMIP")
