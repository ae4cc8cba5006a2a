"""Which methods are better over many data sets? Average ranks, Friedman's test and Nemenyi's critical difference.

Source: Demsar, Statistical Comparisons of Classifiers over Multiple Data Sets, JMLR 7 (2006).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from common.commandline import printable
from reporting.compare import p_text, selection_rules
from reporting.formats import Document, Grid, Line, Number
from reporting.methods import (
    PROTOCOLS,
    Method,
    Metric,
    Protocol,
    check_protocol,
    chosen_metrics,
    comparability,
    datasets_of,
    group_methods,
    sources_of,
)
from reporting.stats import MIN_DATASETS, MIN_METHODS, Ranks, rank_methods
from results.schema import ResultsError, Run

_COLUMNS = ("average_rank", "methods", "datasets", "chi2", "p", "critical_difference")
_LEGEND = (
    "Average rank over the data sets: 1 is the best on a data set, equal numbers share their ranks. A data set's "
    "number is the mean over its seeds. Ranks depend on which methods are compared.",
    "Friedman's test (chi-square, corrected for ties) asks whether any methods differ, Nemenyi's critical difference "
    "which two: Demsar, JMLR 7 (2006). Both are at the 5 % level and take data sets as the sample, seeds add none.",
)


class Ranking(NamedTuple):
    """Methods under one metric, best first."""

    metric: Metric
    datasets: tuple[str, ...]
    methods: tuple[Method, ...]
    values: tuple[tuple[float, ...], ...]  # (data sets, methods), means over seeds
    result: Ranks
    left_out: tuple[str, ...]  # what is said of methods that lack a data set

    def groups(self) -> list[tuple[int, int]]:
        """First and last place of each largest group of methods, no two of which are told apart."""
        average, found = self.result.average, []
        if not self.result.differ:
            return [(0, len(average) - 1)]
        for first, best in enumerate(average):
            last = max(place for place, rank in enumerate(average) if rank - best < self.result.critical_difference)
            if last > first and (not found or last > found[-1][1]):
                found.append((first, last))
        return found


def ranked(methods: Sequence[Method], protocol: Protocol, metric: Metric) -> Ranking:
    """The methods that have the metric on every data set, ranked; a transfer's source is none of the data sets.

    Raises:
        ResultsError: several numbers of shots, or too few data sets or methods for the tests.
    """
    runs = [run for method in methods for run in method.runs]
    shots = sorted({run.shots for run in runs if not run.deterministic})
    if protocol.columns_by == "shots" and len(shots) > 1:
        raise ResultsError(f"ranks are of one number of shots: choose with --shots ({', '.join(map(str, shots))})")
    sources = sources_of(runs, protocol)
    datasets = [name for name in datasets_of(runs) if name not in sources]
    if len(datasets) < MIN_DATASETS:
        raise ResultsError(
            f"average ranks need at least {MIN_DATASETS} data sets, there are {len(datasets)}: with fewer, the tests "
            "of Friedman and Nemenyi can tell next to nothing (Demsar, JMLR 2006)"
        )
    table, lacking = [], {}
    for method in methods:
        cells = {name: method.summary(metric, name) for name in datasets}
        if missing := [name for name, cell in cells.items() if cell is None]:
            lacking[method.label] = f"left out of {metric.label}: {method.label} has no number on {', '.join(missing)}"
        else:
            table.append((method, [cell.mean for cell in cells.values()]))
    if len(table) < MIN_METHODS:
        listed = f"; without: {', '.join(lacking)}" if lacking else ""
        raise ResultsError(
            f"average ranks need at least {MIN_METHODS} methods that have {metric.label} on each of {len(datasets)} "
            f"data sets, there are {len(table)}{listed} (compare is for two)"
        )
    order = rank_methods([*zip(*(row for _, row in table), strict=True)], metric.lower).average
    table = [table[place] for place in sorted(range(len(table)), key=order.__getitem__)]
    methods, rows = zip(*table, strict=True)
    values = tuple(zip(*rows, strict=True))
    result, left_out = rank_methods(values, metric.lower), tuple(lacking.values())
    return Ranking(metric, tuple(datasets), methods, values, result, left_out)


def build_ranks(runs: Sequence[Run], protocol_name: str | None = None, metrics: Sequence[str] = ()) -> Document:
    """A row for each method with its average ranks by metric; above them what they show.

    Args:
        runs: of one protocol.
        protocol_name: one of `PROTOCOLS`; None takes the one that all runs share.
        metrics: keys, labels or groups of metrics, in this order; none for the protocol's own.

    Raises:
        ResultsError: the protocols differ, an unknown metric, or what `ranked` refuses.
    """
    protocol_name = check_protocol(runs, protocol_name)
    protocol = PROTOCOLS[protocol_name]
    methods = group_methods(runs, protocol)
    chosen = [metric for metric in chosen_metrics(protocol, metrics) if metric.of_run is not None]
    if not chosen:
        raise ResultsError(f"{', '.join(metrics)}: no run has this number of averages; ranks are of average_H")
    found = [ranked(methods, protocol, metric) for metric in chosen]
    rows: dict[str, dict[str, Number]] = {}  # by method and metric, in the order of the first metric's ranks
    records, content = [["protocol", "metric", "label", "method", "trainer", "setting", *_COLUMNS]], []
    for ranking in found:
        metric, result = ranking.metric, ranking.result
        tests = {"chi2": result.chi2, "p": result.p, "critical_difference": result.critical_difference}
        listed = []
        for place, (method, rank) in enumerate(zip(ranking.methods, result.average, strict=True)):
            rows.setdefault(method.label, {})[metric.key] = Number(f"{rank:.2f}", rank)
            facts = [protocol_name, metric.key, metric.label, method.label, method.trainer, method.setting]
            records.append([*facts, rank, len(ranking.methods), len(ranking.datasets), *tests.values()])
            by_dataset = {
                name: {"value": ranking.values[index][place], "rank": result.ranks[index][place]}
                for index, name in enumerate(ranking.datasets)
            }
            named = {"method": method.label, "trainer": method.trainer, "setting": method.setting}
            listed.append(named | {"average_rank": rank, "datasets": by_dataset})
        groups = [[method.label for method in ranking.methods[a : b + 1]] for a, b in ranking.groups()]
        content.append({"metric": metric.key, "label": metric.label, "sentence": sentence(ranking), **tests})
        content[-1] |= {"methods": listed, "groups": groups}
    lines = [Line([name], [cells.get(metric.key, Number()) for metric in chosen]) for name, cells in rows.items()]
    title = f"Average ranks over {len(found[0].datasets)} data sets: {protocol.title}"
    legend = [*_LEGEND, *dict.fromkeys(metric.legend for metric in chosen if metric.legend)]
    warnings = [said for ranking in found for said in ranking.left_out]
    warnings += [*comparability(runs), *selection_rules(methods, "the methods choose")]
    warnings = tuple(map(printable, warnings))
    return Document(
        title,
        [Grid(title, ["Method", *(metric.label for metric in chosen)], 1, lines)],
        legend,
        warnings,
        records,
        {"protocol": protocol_name, "title": title, "rankings": content, "legend": legend, "warnings": warnings},
        lead=[sentence(ranking) for ranking in found],
    )


def sentence(ranking: Ranking) -> str:
    """What was measured under one metric, then what can be claimed."""
    labels, result = [method.label for method in ranking.methods], ranking.result
    first, last = result.average[0], result.average[-1]
    said = (
        f"{ranking.metric.label}: average ranks of {len(labels)} methods over {len(ranking.datasets)} data sets from "
        f"{first:.2f} ({labels[0]}) to {last:.2f} ({labels[-1]}). Friedman's chi-square {result.chi2:.2f} with "
        f"{len(labels) - 1} degrees of freedom, p = {p_text(result.p)}: "
    )
    if not result.differ:
        return f"{said}this shows no difference between the methods at the 5 % level, so that no two are compared."
    critical = result.critical_difference
    said += f"the methods differ. Nemenyi's critical difference {critical:.2f}: "
    below = [label for label, rank in zip(labels, result.average, strict=True) if rank - first >= critical]
    return said + (f"{labels[0]} is better than {', '.join(below)}." if below else "no two are that far apart.")
