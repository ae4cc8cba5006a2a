"""One protocol's results as a table: mean and spread over seeds, with what a reader must be told.

`open_world` and `base_to_new` have one block per data set with one column per metric, `few_shot` one block per data
set with one column per number of shots, the other protocols one block with one column per data set.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import NamedTuple

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


class Column(NamedTuple):
    """A column of a block."""

    key: str
    label: str
    metric: Metric
    dataset: str
    shots: int | None = None  # None: any


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
    sources = {run.source_dataset for run in runs} - {None}
    per_block = _columns(protocol, runs, sources)
    blocks = [_block(protocol, title, columns, methods) for title, columns in per_block.items()]
    if protocol.columns_by == "dataset":
        blocks = [_with_average_column(blocks[0], sources)]
    elif len(blocks) > 1:
        blocks.append(_average_block(protocol, blocks))
    legend = [*_COUNTING, *protocol.legend, *_runs_legend(runs, methods, protocol, sources)]
    if published is not None:
        targets = {run.dataset for run in runs} - sources
        blocks, notes = with_published(blocks, protocol_name, protocol, datasets=targets, choice=published)
        legend += notes
    columns = [column for block in per_block.values() for column in block]
    if protocol.columns_by == "metric":
        blocks = [block.with_columns(chosen) for block in blocks]
        entering = {key for metric in protocol.metrics if metric.key in chosen for key in metric.harmonic_of or ()}
        columns = [column for column in columns if column.key in entering.union(chosen)]
    if group == "metric" and protocol.columns_by != "dataset":
        blocks = _turned(blocks)
    legend, warnings = tuple(map(printable, legend)), tuple(map(printable, _warnings(methods, columns)))
    return Table(protocol_name, protocol.title, tuple(blocks), legend, warnings)


def _chosen_metrics(protocol: Protocol, names: Sequence[str]) -> list[str]:
    """Keys of the metrics that these names, keys or labels, stand for; all of them for no name."""
    keys = {metric.label.lower(): metric.key for metric in protocol.metrics}
    keys |= {metric.key.lower(): metric.key for metric in protocol.metrics}
    unknown = [name for name in names if name.lower() not in keys]
    if unknown:
        known = ", ".join(metric.key for metric in protocol.metrics)
        raise ResultsError(f"no metric {unknown[0]!r} in {protocol.title}; choose from {known}")
    return list(dict.fromkeys(keys[name.lower()] for name in names)) or [metric.key for metric in protocol.metrics]


def _columns(protocol: Protocol, runs: Sequence[Run], sources: set[str]) -> dict[str, list[Column]]:
    """The columns under each block's title, but for averages over data sets."""
    datasets = sorted({run.dataset for run in runs}, key=dataset_order)
    first = protocol.metrics[0]
    if protocol.columns_by == "dataset":
        datasets.sort(key=lambda name: name not in sources)
        labels = {name: f"{name} (source)" if name in sources else name for name in datasets}
        return {protocol.title: [Column(name, label, first, name) for name, label in labels.items()]}
    if protocol.columns_by == "metric":
        return {
            name: [Column(metric.key, metric.label, metric, name) for metric in protocol.metrics] for name in datasets
        }
    shots = sorted({run.shots for run in runs})
    return {name: [Column(str(count), shots_text(count), first, name, count) for count in shots] for name in datasets}


def _block(protocol: Protocol, title: str, columns: Sequence[Column], methods: Sequence[Method]) -> Block:
    rows = []
    for method in methods:
        cells = {
            column.key: method.summary(column.metric, column.dataset, column.shots) if column.metric.of_run else None
            for column in columns
        }
        rows.append(Row(method, _with_harmonic_means(protocol, cells)))
    dataset = None if protocol.columns_by == "dataset" else title
    return Block(title, {column.key: column.label for column in columns}, tuple(rows), dataset)


def _with_harmonic_means(protocol: Protocol, cells: dict[str, Summary | None]) -> dict[str, Summary | None]:
    """Fill the columns that are computed from the averages of two others."""
    for metric in protocol.metrics:
        if metric.harmonic_of:
            cells[metric.key] = harmonic_of_averages(*(cells[key] for key in metric.harmonic_of))
    return cells


def _average_block(protocol: Protocol, blocks: Sequence[Block]) -> Block:
    computed = [metric.key for metric in protocol.metrics if metric.harmonic_of]
    rows = []
    for same in zip(*(block.rows for block in blocks), strict=True):
        per_column = {key: [row.cells[key] for row in same] for key in blocks[0].columns}
        cells = {key: None if key in computed else average_over(cells) for key, cells in per_column.items()}
        rows.append(Row(same[0].method, _with_harmonic_means(protocol, cells)))
    return Block(f"{AVERAGE} over {len(blocks)} data sets", blocks[0].columns, tuple(rows))


def _with_average_column(block: Block, sources: set[str]) -> Block:
    """Append the average over the target data sets, when there are several."""
    targets = [key for key in block.columns if key not in sources]
    if len(targets) < 2:
        return block
    key = AVERAGE if AVERAGE not in block.columns else f"{AVERAGE} over {len(targets)} data sets"
    rows = [
        replace(row, cells={**row.cells, key: average_over([row.cells[one] for one in targets])}) for row in block.rows
    ]
    return replace(block, columns={**block.columns, key: AVERAGE}, rows=tuple(rows))


def _turned(blocks: Sequence[Block]) -> list[Block]:
    """One block per column in place of one per data set, the data sets as columns: the papers' layout."""
    titles = {block.title: block.title for block in blocks}
    turned = []
    for key, label in blocks[0].columns.items():
        rows = [
            replace(same[0], cells={title: row.cells[key] for title, row in zip(titles, same, strict=True)})
            for same in zip(*(block.rows for block in blocks), strict=True)
        ]
        turned.append(Block(label, titles, tuple(rows), key=key))
    return turned


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


def _warnings(methods: Sequence[Method], columns: Sequence[Column]) -> Iterable[str]:
    """What a reader must be told about a table's runs, each warning naming the paths it is about."""
    yield from _missing_seeds(methods, columns)
    yield from _missing_numbers(methods, columns)
    for method in methods:
        first_with: dict[str, Run] = {}
        for run in method.runs:
            first_with.setdefault(run.selection_rule, run)
        if len(first_with) > 1:
            listed = "; ".join(f"{rule}: {run.path}" for rule, run in sorted(first_with.items()))
            yield f"{method.label} mixes selection rules ({listed})"
        if method.deterministic:
            yield from _unsteady(method, columns)
    yield from comparability([run for method in methods for run in method.runs])


def _missing_seeds(methods: Sequence[Method], columns: Sequence[Column]) -> Iterable[str]:
    # columns of one data set and number of shots are fed by the same runs: say it once
    for column in {(column.dataset, column.shots): column for column in columns}.values():
        found = [(method, method.runs_on(column.dataset, column.shots)) for method in methods]
        # a method that trains nothing needs no second seed
        expected = {run.seed for method, runs in found if not method.deterministic for run in runs}
        place = column.dataset if column.shots is None else f"{column.dataset}, {shots_text(column.shots)}"
        for method, runs in found:
            if not runs:
                yield f"{method.label} has no run on {place}"
            elif not method.deterministic and (missing := expected - {run.seed for run in runs}):
                there = sorted(run.seed for run in runs)
                yield (
                    f"{method.label} on {place}: other rows have seed {', '.join(map(str, sorted(missing)))}, this one "
                    f"only {', '.join(map(str, there))} (beside {runs[0].path.parent})"
                )


def _missing_numbers(methods: Sequence[Method], columns: Sequence[Column]) -> Iterable[str]:
    lacking: dict[str, list[Run]] = defaultdict(list)
    for run in (run for method in methods for run in method.runs):
        # zero-shot runs stand for every number of shots
        there = [column for column in columns if column.dataset == run.dataset and column.metric.of_run]
        there = [column.metric for column in there if column.shots in (None, run.shots) or run.deterministic]
        labels = [metric.label for metric in there if metric.of_run(run) is None]
        if labels:
            lacking[", ".join(labels)].append(run)
    for labels, runs in lacking.items():
        yield f"{runs[0].path}{f' and {len(runs) - 1} more hold' if len(runs) > 1 else ' holds'} no {labels}"


def _unsteady(method: Method, columns: Sequence[Column]) -> Iterable[str]:
    """Numbers of a method that trains nothing which differ all the same."""
    metrics = {column.metric.label: column.metric.of_run for column in columns if column.metric.of_run}
    for dataset in sorted({run.dataset for run in method.runs}):
        runs = [run for run in method.runs if run.dataset == dataset]
        differing = [label for label, read in metrics.items() if len(set(map(read, runs))) > 1]
        if differing:
            paths = ", ".join(str(run.path) for run in runs)
            yield f"{method.label} trains nothing, yet {', '.join(differing)} differ on {dataset} between {paths}"
