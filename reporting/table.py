"""One protocol's results as a table: mean and spread over seeds, with what a reader must be told.

`open_world` and `base_to_new` have one block per data set with one column per metric, `few_shot` one block per data
set with one column per number of shots, the other protocols one block with one column per data set.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import product

from common.commandline import printable
from reporting.blocks import Block, Row, Table
from reporting.methods import (
    PROTOCOLS,
    Method,
    Metric,
    Protocol,
    check_protocol,
    comparability,
    differing_settings,
    group_methods,
)
from reporting.names import dataset_order, shots_text
from reporting.published import AVERAGE, with_published
from reporting.runs import ResultsError, Run
from reporting.stats import Summary, average_over, harmonic_of_averages

MAX_KEYS = 5  # settings that a row's columns differ in, named in the legend
_COUNTING = (
    "All numbers in percent; mean ± sample standard deviation (n - 1) over the seeds listed; one seed (n=1): no "
    "deviation. deterministic: nothing is trained, every seed gives the same number.",
    'A "-" stands where no finished run has the number; (n=k) in a cell: fewer seeds than its row lists.',
)


def build_table(
    runs: Sequence[Run],
    protocol_name: str | None = None,
    *,
    group: str = "dataset",
    published: str | None = None,
    metrics: Sequence[str] = (),
) -> Table:
    """Arrange runs into their protocol's table.

    Args:
        runs: finished runs.
        protocol_name: one of `PROTOCOLS`; None takes the one that all runs share.
        group: "dataset" for a block per data set, "metric" for the papers' layout: a block per metric (few-shot: per
            number of shots) with the data sets as columns; where the data sets are columns anyway it changes nothing.
        published: which published rows to add, one of `published.CHOICES`; None for none.
        metrics: keys or labels of the metrics to show, in this order; none for all.

    Raises:
        ResultsError: runs of another protocol, two runs with nothing to tell them apart, or an unknown metric.
    """
    protocol_name = check_protocol(runs, protocol_name)
    protocol = PROTOCOLS[protocol_name]
    chosen = _chosen_metrics(protocol, metrics)
    methods = group_methods(runs, protocol)
    by_dataset, by_shots = protocol.columns_by == "dataset", protocol.columns_by == "shots"
    sources = {run.source_dataset for run in runs} - {None}
    datasets = sorted({run.dataset for run in runs}, key=dataset_order)
    datasets.sort(key=lambda name: by_dataset and name not in sources)
    shots = sorted({run.shots for run in runs}) if by_shots else [None]

    # a number stands at a place, which is a data set or an average over them, under a metric or a number of shots
    keys = {metric.key: metric.label for metric in chosen}
    if by_shots:
        keys = {str(count): shots_text(count) for count in shots}
    places, targets = list(datasets), [name for name in datasets if not (by_dataset and name in sources)]
    if len(targets) > 1:
        short = by_dataset and AVERAGE not in datasets
        places.append(AVERAGE if short else f"{AVERAGE} over {len(targets)} data sets")
    rows = []
    for method in methods:
        cells: dict[tuple[str, str], Summary | None] = {}
        for place, metric, count in product(places, protocol.metrics, shots):
            key = str(count) if by_shots else metric.key
            if metric.harmonic_of:
                cells[place, key] = harmonic_of_averages(*(cells[place, part] for part in metric.harmonic_of))
            elif place in datasets:
                cells[place, key] = method.summary(metric, place, count)
            else:
                cells[place, key] = average_over([cells[name, key] for name in targets])
        rows.append(Row(method, cells))
    legend = [*_COUNTING, *protocol.legend, *_runs_legend(runs, methods, protocol, sources)]
    if published is not None:
        rows, places, notes = with_published(rows, places, protocol_name, protocol, targets, published)
        legend += notes

    def block(title: str, columns: Mapping[str, str], cell: Callable[[str], tuple[str, str]], **what: str) -> Block:
        cut = [replace(row, cells={column: row.cells[cell(column)] for column in columns}) for row in rows]
        return Block(title, columns, tuple(cut), **what)

    if by_dataset:
        (key,) = keys
        labels = {place: f"{place} (source)" if place in sources else place for place in places}
        blocks = [block(protocol.title, labels, lambda place: (place, key))]
    elif group == "metric":
        columns = {place: place for place in places}
        blocks = [block(keys[key], columns, lambda place, key=key: (place, key), key=key) for key in keys]
    else:
        about = {place: place if place in datasets else None for place in places}
        blocks = [block(place, keys, lambda key, place=place: (place, key), dataset=about[place]) for place in places]
    entering = {metric.key for metric in chosen}.union(*(metric.harmonic_of or () for metric in chosen))
    read = [metric for metric in protocol.metrics if metric.key in entering and metric.of_run]
    warnings = _warnings(methods, read, list(product(datasets, shots)))
    legend, warnings = tuple(map(printable, legend)), tuple(map(printable, warnings))
    return Table(protocol_name, protocol.title, tuple(blocks), legend, warnings)


def _chosen_metrics(protocol: Protocol, names: Sequence[str]) -> list[Metric]:
    """The metrics that these names, keys or labels, stand for; all of them for no name."""
    known = {metric.label.lower(): metric for metric in protocol.metrics}
    known |= {metric.key.lower(): metric for metric in protocol.metrics}
    unknown = [name for name in names if name.lower() not in known]
    if unknown:
        choices = ", ".join(metric.key for metric in protocol.metrics)
        raise ResultsError(f"no metric {unknown[0]!r} in {protocol.title}; choose from {choices}")
    return list(dict.fromkeys(known[name.lower()] for name in names)) or list(protocol.metrics)


def _runs_legend(
    runs: Sequence[Run], methods: Sequence[Method], protocol: Protocol, sources: set[str]
) -> Iterable[str]:
    if len({run.dataset for run in runs}) > 1:
        yield (
            "average: each seed's average over the data sets first, over the seeds that all of them have"
            f"{', source data sets left out' if sources else ''}."
        )
    yield f"Backbone: {', '.join(sorted({run.backbone for run in runs}))}."
    if any(run.demonstration for run in runs):
        yield "A bundled backbone is a small demonstration model: not comparable with any published number."
    trained = [method for method in methods if not method.deterministic]
    if trained and protocol.columns_by != "shots":
        yield f"Shots per class: {', '.join(map(str, sorted({method.shots for method in trained})))}."
    for method in methods:
        keys = sorted(differing_settings(method.runs))
        if keys:
            more = f" and {len(keys) - MAX_KEYS} more" if len(keys) > MAX_KEYS else ""
            yield f"{method.label}: the columns' runs differ in {', '.join(keys[:MAX_KEYS])}{more}."
        changed = dict.fromkeys(f"{key} {value}" for run in method.runs for key, value in run.overrides.items())
        if changed:
            yield f"{method.label}: changed: {', '.join(changed)}."
    rules = {method.selection_rule for method in trained}
    if len(rules) == 1:
        yield f"Selection rule: {rules.pop()}."
    elif rules:
        yield f"Selection rules: {'; '.join(f'{method.label}: {method.selection_rule}' for method in trained)}."


def _warnings(
    methods: Sequence[Method], metrics: Sequence[Metric], places: Sequence[tuple[str, int | None]]
) -> Iterable[str]:
    """What a reader must be told about a table's runs, each warning naming the paths it is about."""
    for dataset, shots in places:
        found = [(method, method.runs_on(dataset, shots)) for method in methods]
        # a method that trains nothing needs no second seed
        expected = {run.seed for method, runs in found if not method.deterministic for run in runs}
        place = dataset if shots is None else f"{dataset}, {shots_text(shots)}"
        for method, runs in found:
            there = sorted(run.seed for run in runs)
            missing = sorted(expected.difference(there))
            if not runs:
                yield f"{method.label} has no run on {place}"
            elif missing and not method.deterministic:
                yield (
                    f"{method.label} on {place}: other rows have seed {', '.join(map(str, missing))}, this one only "
                    f"{', '.join(map(str, there))} (beside {runs[0].path.parent})"
                )
    lacking: dict[str, list[Run]] = defaultdict(list)
    for run in (run for method in methods for run in method.runs):
        if labels := [metric.label for metric in metrics if metric.of_run(run) is None]:
            lacking[", ".join(labels)].append(run)
    for labels, runs in lacking.items():
        yield f"{runs[0].path}{f' and {len(runs) - 1} more hold' if len(runs) > 1 else ' holds'} no {labels}"
    for method in methods:
        first_with: dict[str, Run] = {}
        for run in method.runs:
            first_with.setdefault(run.selection_rule, run)
        if len(first_with) > 1:
            listed = "; ".join(f"{rule}: {run.path}" for rule, run in sorted(first_with.items()))
            yield f"{method.label} mixes selection rules ({listed})"
        for dataset in sorted({run.dataset for run in method.runs}) if method.deterministic else ():
            runs = method.runs_on(dataset)
            differing = [metric.label for metric in metrics if len(set(map(metric.of_run, runs))) > 1]
            if differing:
                paths = ", ".join(str(run.path) for run in runs)
                yield f"{method.label} trains nothing, yet {', '.join(differing)} differ on {dataset} between {paths}"
    yield from comparability([run for method in methods for run in method.runs])
