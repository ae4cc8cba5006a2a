"""Average ranks over data sets, against Demsar's worked example and scipy."""

import csv
import io
import json
import random
from collections import Counter

import pytest
from scipy import stats

from reporting.__main__ import main
from reporting.ranks import build_ranks
from reporting.stats import rank_methods
from results.schema import ResultsError, load_runs

# Demsar (JMLR 7, 2006), table 6: AUC of C4.5, C4.5+m, C4.5+cf and C4.5+m+cf. In the line before the last, the paper
# ranks 0.975 before 0.975, of which more digits are not given.
DEMSAR = """
0.763 0.768 0.771 0.798
0.599 0.591 0.590 0.569
0.954 0.971 0.968 0.967
0.628 0.661 0.654 0.657
0.882 0.888 0.886 0.898
0.936 0.931 0.916 0.931
0.661 0.668 0.609 0.685
0.583 0.583 0.563 0.625
0.775 0.838 0.866 0.875
1.000 1.000 1.000 1.000
0.940 0.962 0.965 0.962
0.619 0.666 0.614 0.669
0.972 0.981 0.975 0.9749
0.957 0.978 0.946 0.970
"""
SCORES = [[float(score) for score in line.split()] for line in DEMSAR.split("\n") if line]
NAMES = ("CoOp", "MaPLe", "VPT", "BMIP")


def write(runs, scores, names=NAMES, **changes):
    for number, row in enumerate(scores):
        for name, score in zip(names, row, strict=True):
            runs.add({"all": {"accuracy": 100 * score}}, **{"protocol": "cross_dataset"} | changes,
                     dataset=f"set{number:02}", trainer=name)  # fmt: skip
    return load_runs([runs.root])


def test_demsars_worked_example():
    result = rank_methods(SCORES)
    assert [round(rank, 3) for rank in result.average] == [3.143, 2.000, 2.893, 1.964]
    assert result.critical_difference == pytest.approx(1.25, abs=0.005)
    # the paper's chi-square is not corrected for ties, Friedman's is
    ties = sum(count**3 - count for row in result.ranks for count in Counter(row).values())
    assert round(result.chi2 * (1 - ties / (14 * (4**3 - 4))), 2) == 9.28
    expected = stats.friedmanchisquare(*zip(*SCORES, strict=True))
    assert (result.chi2, result.p) == pytest.approx((expected.statistic, expected.pvalue))
    assert result.differ


def test_of_an_error_the_lowest_is_the_best():
    assert rank_methods([[-score for score in row] for row in SCORES], lower=True) == rank_methods(SCORES)


@pytest.mark.parametrize(("methods", "quantile"), [(3, 2.343), (5, 2.728), (10, 3.164)])
def test_the_critical_difference_has_the_papers_quantiles(methods, quantile):
    draw = random.Random(0)
    result = rank_methods([[draw.random() for _ in range(methods)] for _ in range(8)])
    assert result.critical_difference == pytest.approx(quantile * (methods * (methods + 1) / 48) ** 0.5, rel=1e-3)


def test_a_row_for_each_method_and_what_the_ranks_show(runs, capsys):
    write(runs, SCORES)
    assert main(["rank", str(runs.root)]) == 0
    shown = capsys.readouterr().out
    assert "## Average ranks over 14 data sets: Cross-dataset transfer" in shown
    assert (
        "- all: average ranks of 4 methods over 14 data sets from 1.96 (BMIP) to 3.14 (CoOp). Friedman's chi-square "
        "10.23 with 3 degrees of freedom, p = 0.0167: the methods differ. Nemenyi's critical difference 1.25: no two "
        "are that far apart."
    ) in shown
    rows = [line.split() for line in shown.splitlines() if line.startswith("|")][2:]
    assert [(row[1], row[3]) for row in rows] == [
        ("BMIP", "1.96"),
        ("MaPLe", "2.00"),
        ("VPT", "2.89"),
        ("CoOp", "3.14"),
    ]
    assert main(["rank", str(runs.root), "--format", "csv"]) == 0
    first = next(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert (first["method"], first["datasets"], first["methods"]) == ("BMIP", "14", "4")
    assert main(["rank", str(runs.root), "--format", "json"]) == 0
    (ranking,) = json.loads(capsys.readouterr().out)["rankings"]
    assert ranking["groups"] == [["BMIP", "MaPLe", "VPT", "CoOp"]]
    assert ranking["methods"][-1]["datasets"]["set01"] == {"value": pytest.approx(59.9), "rank": 1.0}


def test_who_is_better_than_whom_and_methods_that_are_equal(runs):
    scores = [[0.5, 0.6, 0.7, 0.8]] * 8
    (said,) = build_ranks(write(runs, scores)).lead
    assert said.endswith("the methods differ. Nemenyi's critical difference 1.66: BMIP is better than MaPLe, CoOp.")
    (said,) = build_ranks(write(runs, [[0.5] * 4] * 8)).lead
    assert "Friedman's chi-square 0.00 with 3 degrees of freedom, p = 1: this shows no difference" in said


def test_a_method_that_lacks_a_data_set_is_left_out_and_named(runs):
    write(runs, [[0.5, 0.6, 0.7, 0.8]] * 6)
    next(runs.root.glob("cross_dataset/VPT/*/set03/*/*/results.json")).unlink()
    document = build_ranks(load_runs([runs.root]))
    assert [line.names for line in document.grids[0].lines] == [["BMIP"], ["MaPLe"], ["CoOp"]]
    assert document.warnings == ("left out of all: VPT has no number on set03",)


def test_a_transfers_source_is_not_ranked(runs):
    write(runs, [[0.5, 0.6, 0.7, 0.8]] * 5, source_dataset="imagenet")
    for name in NAMES:
        runs.add({"all": {"accuracy": 50.0}}, protocol="cross_dataset", dataset="imagenet", trainer=name)
    assert build_ranks(load_runs([runs.root])).title == "Average ranks over 5 data sets: Cross-dataset transfer"


@pytest.mark.parametrize(
    ("datasets", "methods", "arguments", "message"),
    [
        (4, 4, [], "average ranks need at least 5 data sets, there are 4: with fewer, the tests"),
        (6, 4, ["--dataset", "set01"], "there are 1: with fewer"),
        (6, 2, [], "at least 3 methods that have all on each of 6 data sets, there are 2 (compare is for two)"),
        (6, 4, ["--metrics", "ece"], "that have ECE on each of 6 data sets, there are 0; without: CoOp, VPT, MaPLe"),
        (6, 4, ["--metrics", "F1"], "no metric 'F1'"),
    ],
)
def test_too_little_to_rank_is_refused_with_the_reason(runs, capsys, datasets, methods, arguments, message):
    write(runs, [[0.5, 0.6, 0.7, 0.8][:methods]] * datasets, NAMES[:methods])
    assert main(["rank", str(runs.root), *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1


def test_ranks_are_of_one_number_of_shots_and_of_numbers_of_runs(runs):
    for shots in (1, 4):
        loaded = write(runs, [[0.5, 0.6, 0.7, 0.8]] * 5, protocol="few_shot", shots=shots)
    with pytest.raises(ResultsError, match="choose with --shots .1, 4."):
        build_ranks(loaded)
    runs.add_experiment()
    open_world = [run for run in load_runs([runs.root]) if run.protocol == "open_world"]
    with pytest.raises(ResultsError, match="H: no run has this number of averages; ranks are of average_H"):
        build_ranks(open_world, "open_world", ["H"])
