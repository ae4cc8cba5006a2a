"""Is one method better than another, on the same data sets, shots and seeds?"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import NamedTuple

from common.commandline import listed, printable
from reporting.formats import MISSING, Document, Grid, Line, Number
from reporting.methods import (
    COST,
    PROTOCOLS,
    Method,
    Metric,
    check_protocol,
    chosen_metrics,
    comparability,
    dataset_order,
    datasets_of,
    group_methods,
    shots_text,
    sources_of,
)
from reporting.stats import LEVEL, MIN_PAIRS, Pair, Paired, compare_pairs, holm
from results.schema import ResultsError, Run

_IN_WORDS = {
    "base": "on base classes",
    "new": "on new classes",
    "average_H": "in H of base and new",
    "all": "over all classes",
    "open_H": "in open-world H",
}


_WITHOUT_SOURCE = " The source data set is left out."

# of the csv
_FACTS = ("protocol", "first", "second")
_COLUMNS = (
    *("n", "mean_first", "mean_second", "difference", "low", "high", "p_t", "p_signed_rank", "claim"),
    *("p_holm", "claim_holm", "seeds", "low_over_seeds", "high_over_seeds"),
    *("datasets", "low_over_datasets", "high_over_datasets", "won", "tied", "lost"),
)


class MetricLine(NamedTuple):
    """One metric's comparison."""

    key: str  # the metric's name in csv and json
    label: str  # for reading, with the shots where there are several
    result: Paired
    sentence: str  # the result in words
    lower: bool  # whether lower is better
    p_holm: float  # the larger of the two p-values, corrected over the methods that one is compared with

    @property
    def claim_holm(self) -> bool:
        """Whether a difference can be claimed although so many methods were compared."""
        return self.result.claim and self.p_holm < LEVEL


class Comparison(NamedTuple):
    """Two methods on the same data sets and seeds; differences are second minus first."""

    protocol: str
    title: str
    first: str
    second: str
    lines: tuple[MetricLine, ...]
    legend: tuple[str, ...]
    left_out: tuple[str, ...]  # the first of the warnings: runs without a counterpart
    warnings: tuple[str, ...]


def build_comparison(
    runs: Sequence[Run], first: str, second: str, protocol_name: str | None = None, metrics: Sequence[str] = ()
) -> Comparison:
    """Compare two methods.

    Args:
        runs: of one protocol; those of other methods are left aside.
        first: a trainer, trainer/setting, or a row's name in the table; as is `second`.
        protocol_name: one of `PROTOCOLS`; None takes the one that all runs share.
        metrics: keys, labels or groups of the metrics to compare, in this order; none for the protocol's own.

    Raises:
        ResultsError: the protocols differ, a name fits no method or several, the two share no data set and seed, or an
            unknown metric.
    """
    protocol_name = check_protocol(runs, protocol_name)
    protocol = PROTOCOLS[protocol_name]
    methods = group_methods(runs, protocol)
    one, other = _method(methods, first), _method(methods, second)
    if one is other:
        raise ResultsError(f"{first!r} and {second!r} are the same method: {one.label}")
    return _compared(one, other, protocol_name, metrics, sources_of(runs, protocol))


def _compared(
    one: Method, other: Method, protocol_name: str, metrics: Sequence[str], sources: Collection[str]
) -> Comparison:
    protocol = PROTOCOLS[protocol_name]
    chosen = [metric for metric in chosen_metrics(protocol, metrics) if metric.of_run is not None]
    if costs := [metric.key for metric in chosen if metric.group == COST]:
        raise ResultsError(f"{costs[0]} is a cost, of which no difference is tested: name it to `reporting table`")
    lines = [line for metric in chosen for line in _lines(metric, one, other, sources)]
    if not lines:
        raise ResultsError(
            f"{one.label} and {other.label} share no {'target ' if sources else ''}data set, shots and seed "
            f"(the first: {_places(one)}; the second: {_places(other)})"
        )
    left_out = tuple(map(printable, _left_out(one, other)))
    warnings = [*comparability([*one.runs, *other.runs]), *selection_rules([one, other], "the two choose")]
    legend = [
        f"Differences: {other.label} minus {one.label} in percent points, paired by data set, shots and seed. "
        "Interval: Student's t, 95 %. Tests: paired t-test and Wilcoxon's signed-rank test, two-sided. A difference is "
        "claimed only where both are below 5 %; where none is, the two need not be equal."
        f"{_WITHOUT_SOURCE if sources else ''}"
    ]
    if one.deterministic != other.deterministic:
        fixed = one if one.deterministic else other
        differs = any(seed is not None for metric in chosen for _, _, seed in _values(fixed, metric))
        but = ", unless its own seeds differ" if differs else ""
        legend.append(f"{fixed.label} trains nothing: its number stands for every seed{but}.")
    if len(lines) > 1:
        chance = "about one in twenty of equal methods comes below the 5 % level by chance"
        legend.append(f"{len(lines)} comparisons are made here: {chance}.")
    if any(line.result.by_dataset for line in lines):
        legend.append(
            "Average over data sets: of each data set's mean difference. Its interval over seeds, of the average of "
            "each seed that all data sets have, says how far training again on these data sets would change it; its "
            f"interval over data sets, how far other data sets would. Won, tied, lost: data sets where {other.label} "
            "is better, equal to one decimal, and worse."
        )
    title = f"{other.label} against {one.label}: {protocol.title}"
    warnings = (*left_out, *map(printable, warnings))
    return Comparison(protocol_name, title, one.label, other.label, tuple(lines), tuple(legend), left_out, warnings)


def against_all(
    runs: Sequence[Run], first: str, protocol_name: str | None = None, metrics: Sequence[str] = ()
) -> Document:
    """One method against every other: a row for each, with the differences (the first minus the other) by metric.

    Args:
        runs, first, protocol_name, metrics: as of `build_comparison`.

    Raises:
        ResultsError: as there; or there is no other method.
    """
    protocol_name = check_protocol(runs, protocol_name)
    protocol = PROTOCOLS[protocol_name]
    methods = group_methods(runs, protocol)
    one = _method(methods, first)
    others = [method for method in methods if method is not one]
    if not others:
        raise ResultsError(f"{one.label} is the only method of these runs")
    sources = sources_of(runs, protocol)
    found = [_compared(other, one, protocol_name, metrics, sources) for other in others]
    columns: dict[str, dict[str, float]] = defaultdict(dict)  # p-values by label and row
    for comparison in found:
        for line in comparison.lines:
            columns[line.label][comparison.first] = line.result.p
    p_holm = {label: dict(zip(column, holm([*column.values()]), strict=True)) for label, column in columns.items()}
    rows, records, content = [], [[*_FACTS, "metric", "label", *_COLUMNS]], []
    shown: dict[str, dict[str, MetricLine]] = defaultdict(dict)  # by label and row
    for pair in found:
        lines = tuple(line._replace(p_holm=p_holm[line.label][pair.first]) for line in pair.lines)
        counts = sorted({line.result.interval.n for line in lines})
        cells = dict.fromkeys(columns, Number())
        for line in lines:
            shown[line.label][pair.first] = line
            interval, mark = line.result.interval, " *" if line.claim_holm else ""
            span = "" if interval.low is None else f" ({_points(interval.low)} to {_points(interval.high)})"
            cells[line.label] = Number(f"{_points(interval.mean)}{span}{mark}", interval.mean)
        rows.append(Line([pair.first], [Number(" - ".join(map(str, counts)), counts[0]), *cells.values()]))
        corrected = document(pair._replace(lines=lines))
        records += corrected.records[1:]
        content.append(corrected.content)
    notes = [
        f"Differences: {one.label} minus the row's method in percent points, paired by data set, shots and seed; n "
        f"pairs. In brackets: Student's 95 % interval.{_WITHOUT_SOURCE if sources else ''}",
        "*: a difference is claimed: the paired t-test and Wilcoxon's signed-rank test are both below 5 % after Holm's "
        "correction over the rows of a column. Where none is, the two need not be equal. csv and json have the "
        "p-values without the correction, too.",
    ]
    warnings = [warning for comparison in found for warning in comparison.left_out]
    warnings += map(printable, [*comparability(runs), *selection_rules([one, *others], "the methods choose")])
    title = f"{one.label} against every other method: {protocol.title}"
    grid, lead = Grid(title, ["Method", "n", *columns], 1, rows), [_summary(*item) for item in shown.items()]
    warnings = tuple(dict.fromkeys(warnings))
    return Document(title, [grid], notes, warnings, records, {"comparisons": content, "legend": notes}, lead)


def _summary(label: str, lines: Mapping[str, MetricLine]) -> str:
    """One metric against every other method: what was measured, then what can be claimed."""
    means = [round(line.result.interval.mean, 1) for line in lines.values()]
    above, below = sum(mean > 0 for mean in means), sum(mean < 0 for mean in means)
    claimed = {name: line.result.interval.mean > 0 for name, line in lines.items() if line.claim_holm}
    sides = [", ".join(name for name, higher in claimed.items() if higher == side) for side in (True, False)]
    said = "; ".join(f"{word} than {names}" for word, names in zip(("higher", "lower"), sides, strict=True) if names)
    measured = f"measured higher than {above} of {len(means)} methods, lower than {below}"
    return f"{label}: {measured}. Claimed: {said or 'no difference'}."


def _left_out(one: Method, other: Method) -> Iterable[str]:
    """Runs that enter nothing, because the other method has none like them."""
    for method, counterpart in ((one, other), (other, one)):
        place = (lambda run: run.dataset) if counterpart.deterministic else _place
        there = set(map(place, counterpart.runs))
        lonely = [run for run in method.runs if place(run) not in there and not method.deterministic]
        if lonely:
            which = f"{_place(lonely[0])} ({lonely[0].path})"
            what = f"{len(lonely)} runs of {method.label} have" if len(lonely) > 1 else f"one run of {method.label} has"
            yield f"left out: {what} no counterpart of {counterpart.label}: {'first ' * (len(lonely) > 1)}{which}"


def selection_rules(methods: Sequence[Method], who: str) -> Iterable[str]:
    """A warning where the methods choose the weights to test in different ways."""
    by_rule: dict[str, list[str]] = defaultdict(list)
    for method in methods:
        if not method.deterministic:
            by_rule[method.selection_rule].append(method.label)
    if len(by_rule) > 1:
        rules = "; ".join(f"{', '.join(names)}: {rule}" for rule, names in by_rule.items())
        yield f"{who} their weights by different rules ({rules}), which is part of the difference"


def _method(methods: Sequence[Method], name: str) -> Method:
    found = [method for method in methods if method.label == name]
    found = found or [method for method in methods if name in method.runs[0].method_names]
    if len(found) == 1:
        return found[0]
    what = "fits several methods" if found else "fits no method"
    choices = "; ".join(f"{method.trainer}/{method.setting} ({method.label})" for method in found or methods)
    raise ResultsError(f"{name!r} {what}: {choices}")


def _lines(metric: Metric, one: Method, other: Method, sources: Collection[str]) -> Iterable[MetricLine]:
    """One comparison for each number of shots, of every data set but the `sources`."""
    first, second = _values(one, metric), _values(other, metric)
    keys = {key for key in (*first, *second) if key[0] not in sources}
    if not (one.deterministic and other.deterministic):
        keys = {key for key in keys if key[2] is not None}
    by_shots: dict[int, list[Pair]] = defaultdict(list)
    for key in sorted(keys, key=lambda key: (dataset_order(key[0]), key[1] or 0, key[2] or 0)):
        dataset, shots, seed = key
        places = (key, (dataset, None, seed), (dataset, None, None))
        left, right = (next((values[at] for at in places if at in values), None) for values in (first, second))
        if left is not None and right is not None:
            by_shots[shots or 0].append(Pair(dataset, shots or 0, seed, left, right))
    for shots, pairs in sorted(by_shots.items()):
        name = metric.label if metric.percent else f"{metric.label} x 100"
        label, where = name, _IN_WORDS.get(metric.key, f"in {name}")
        if len(by_shots) > 1:
            label, where = f"{label}, {shots_text(shots)}", f"{where} with {shots_text(shots)}"
        result = compare_pairs(pairs)
        said = sentence(result, where, one.label, other.label, metric.lower)
        yield MetricLine(metric.key, label, result, said, metric.lower, p_holm=result.p)


def _values(method: Method, metric: Metric) -> dict[tuple[str, int | None, int | None], float]:
    """The metric by data set, shots and seed.

    A method that trains nothing has one number for all shots, and for all seeds unless it differs between them.
    """
    values: dict[tuple[str, int | None, int | None], float] = {}
    if method.deterministic:
        for dataset in datasets_of(method.runs):
            if (summary := method.summary(metric, dataset)) is not None:
                by_seed = {None: summary.mean} if summary.deterministic else summary.values
                values |= {(dataset, None, seed): value for seed, value in by_seed.items()}
    else:
        found = {(run.dataset, run.shots, run.seed): metric.of_run(run) for run in method.runs}
        values = {key: value for key, value in found.items() if value is not None}
    # points are hundredths of either
    return values if metric.percent else {key: 100 * value for key, value in values.items()}


def sentence(result: Paired, where: str, first: str, second: str, lower: bool = False) -> str:
    """What was measured, then what the pairs allow to be said, never more; of `second`, from which `first` is taken.

    `lower`: whether lower is better.
    """
    interval, differences = result.interval, [round(pair.difference, 9) for pair in result.pairs]
    one_dataset = len({pair.dataset for pair in result.pairs}) == 1
    unit = "seed" if one_dataset and result.pairs[0].seed is not None else "pair"
    where = f"{where[0].upper()}{where[1:]}"
    mean = f"difference ({second} minus {first}) {_points(interval.mean)} points"
    if interval.n == 1:
        return f"{where}: {mean}, n = 1 {unit}: one {unit} shows no spread, so that no difference can be claimed."
    if not any(differences):
        return f"{where}: {second} and {first} are equal in all {interval.n} {unit}s: no difference was measured."
    if interval.low is None:
        return (
            f"{where}: {mean} in each of {interval.n} {unit}s: there is no spread to test by, so that no difference "
            "can be claimed."
        )
    higher, equal = sum(value > 0 for value in differences), differences.count(0)
    measured = (
        f"{where}: mean {mean}, 95 % interval {_points(interval.low)} to {_points(interval.high)}, {second} higher in "
        f"{higher} of {interval.n} {unit}s{f' and equal in {equal}' if equal else ''}."
    )
    if result.by_dataset is not None:
        won, tied, lost = result.won_tied_lost(lower)
        measured += f" Data sets: {won} won, {tied} tied, {lost} lost."
    p_t, p_rank = p_text(result.p_t), p_text(result.p_signed_rank)
    measured += f" Paired t-test p = {p_t}, Wilcoxon signed-rank test p = {p_rank}, n = {interval.n}"
    if result.claim:
        direction = "higher" if interval.mean > 0 else "lower"
        claim = f"{measured}: {second} is {direction} at the 5 % level by both tests."
        # how far it goes: seeds tell of the data sets that were run, only data sets tell of others
        if (over := result.by_dataset) is None:
            return f"{claim} It is about {'this data set' if one_dataset else 'these data sets'}."
        span = f"{_points(over.low)} to {_points(over.high)}" if over.low is not None else ""
        span = f" (95 % interval over their means {span})" if span else ""
        if over.excludes_zero:
            return f"{claim} It holds over the {over.n} data sets' averages too{span}."
        return f"{claim} It is about these {over.n} data sets, not about data sets in general{span}."
    below = [name for name, p in (("t-test", result.p_t), ("signed-rank test", result.p_signed_rank)) if p < LEVEL]
    said = "this shows no difference at the 5 % level"
    if below:
        said = f"only the {below[0]} is below the 5 % level, so that no difference is claimed"
    few = f" (the signed-rank test needs {MIN_PAIRS} pairs to get there)" if interval.n < MIN_PAIRS else ""
    return f"{measured}: {said}{few}."


def _points(value: float) -> str:
    return f"{value:+.1f}" if round(value, 1) else "0.0"


def p_text(value: float) -> str:
    """A p-value, not rounded to the level itself nor to 0."""
    return f"{value:.3g}" if value >= 1e-4 else f"{value:.0e}"


def _place(run: Run) -> str:
    return f"{run.dataset}, {shots_text(run.shots)}, seed {run.seed}"


def _places(method: Method) -> str:
    runs = sorted(method.runs, key=lambda run: (run.dataset, run.shots, run.seed))
    return listed(map(_place, runs), 3, separator="; ")


def document(comparison: Comparison) -> Document:
    """The comparison for the writers of `formats`."""
    names = [comparison.first, comparison.second]
    headings = ["Metric", *names, "Difference", "95 % from", "to", "n", "p (t)", "p (signed rank)"]
    shown = [".2f", ".2f", "+.2f", "+.2f", "+.2f", "d", None, None]  # None: a p-value
    records = [[*_FACTS, "metric", "label", *_COLUMNS]]
    rows, averages, metrics = [], [], []
    for line in comparison.lines:
        result, pairs, interval = line.result, line.result.pairs, line.result.interval
        tests = {"p_t": result.p_t, "p_signed_rank": result.p_signed_rank}
        means = [sum(pair.first for pair in pairs) / len(pairs), sum(pair.second for pair in pairs) / len(pairs)]
        means += [interval.mean, interval.low, interval.high]
        cells = [
            Number(MISSING if value is None else f"{value:{style}}" if style else p_text(value), value)
            for value, style in zip([*means, interval.n, *tests.values()], shown, strict=True)
        ]
        rows.append(Line([line.label], cells))
        corrected = {"p_holm": line.p_holm, "claim_holm": line.claim_holm}
        counts = dict(zip(("won", "tied", "lost"), result.won_tied_lost(line.lower), strict=True))
        record = [comparison.protocol, *names, line.key, line.label, interval.n, *means, *tests.values(), result.claim]
        record += corrected.values()
        for over in (result.by_seed, result.by_dataset):
            record += [None] * 3 if over is None else [over.n, over.low, over.high]
        records.append([*record, *counts.values()])
        if result.by_dataset is not None:
            average = [Number(f"{result.by_dataset.mean:+.2f}", result.by_dataset.mean)]
            for over in (result.by_seed, result.by_dataset):
                span = MISSING if over is None or over.low is None else f"{over.low:+.2f} to {over.high:+.2f}"
                average.append(Number(f"{span} (n={over.n})" if over else span, over and over.low))
            averages.append(Line([line.label], [*average, *(Number(str(count), count) for count in counts.values())]))
        metrics.append(
            {"metric": line.key, "label": line.label, "sentence": line.sentence, "claim": result.claim}
            | {"difference": asdict(interval)}
            | {"difference_over_seeds": result.by_seed and asdict(result.by_seed)}
            | {"difference_over_datasets": result.by_dataset and asdict(result.by_dataset)}
            | {**counts, **tests, **corrected}
            | {"pairs": [asdict(pair) | {"difference": pair.difference} for pair in pairs]}
        )
    grids, lead = [Grid(comparison.title, headings, 1, rows)], [line.sentence for line in comparison.lines]
    if averages:
        over_headings = ["Metric", "Difference", "95 % over seeds", "95 % over data sets", "won", "tied", "lost"]
        grids.append(Grid("Average over data sets", over_headings, 1, averages))
    notes, warnings = comparison.legend, comparison.warnings
    content = {fact: getattr(comparison, fact) for fact in _FACTS}
    content |= {"metrics": metrics, "legend": notes, "warnings": warnings}
    return Document(comparison.title, grids, notes, warnings, records, content, lead)
