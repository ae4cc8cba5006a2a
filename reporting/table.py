"""One protocol's results as a table: mean and spread over seeds, with what a reader must be told.

`open_world` and `base_to_new` have one block per data set with one column per metric, `few_shot` one block per data
set with one column per number of shots, the other protocols one block with one column per data set.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from typing import Any

from common.commandline import printable
from reporting.formats import MISSING, Document, Grid, Line, Number
from reporting.methods import (
    COST,
    PROTOCOLS,
    Method,
    Metric,
    check_protocol,
    chosen_metrics,
    comparability,
    datasets_of,
    differing_settings,
    group_methods,
    shots_text,
)
from reporting.published import (
    AVERAGE,
    AVERAGE_H_NOTE,
    BACKBONE,
    BMIP_AVERAGES_NOTE,
    MARKS,
    PUBLISHED_NOTE,
    SHOTS,
    Entry,
    averaged_datasets,
    chosen_entries,
)
from reporting.stats import MIN_DATASETS, Summary, average_over, harmonic_of_averages
from results.schema import ResultsError, Run, canonical_dataset

INTERVALS = "95 % intervals of the average"
MAX_KEYS = 5  # settings that a row's columns differ in, named in the legend
_IN_PERCENT, _MOSTLY = "All numbers in percent;", "Numbers in percent, but where this legend says otherwise;"
_COLUMNS = "Columns: shots per class."
_COUNTING = (
    f"{_IN_PERCENT} mean ± sample standard deviation (n - 1) over the seeds listed; one seed (n=1): no "
    "deviation. deterministic: nothing is trained, every seed gives the same number.",
    'A "-" stands where no finished run has the number; (n=k) in a cell: fewer seeds than its row lists.',
)


@dataclass(frozen=True)
class Row:
    """A method's numbers in one block."""

    method: Method
    cells: Mapping[Any, Summary | None]  # by the block's columns, None where no run has the number
    source: str = ""  # where the numbers were published; empty for measured ones
    source_number: int = 0  # in the legend

    @property
    def present(self) -> list[Summary]:
        return [cell for cell in self.cells.values() if cell is not None]

    @property
    def seeds(self) -> list[int]:
        return sorted({seed for cell in self.present for seed in cell.seeds})

    @property
    def deterministic(self) -> bool:
        return bool(self.present) and all(cell.deterministic for cell in self.present)


@dataclass(frozen=True)
class Block:
    """Rows under one heading."""

    title: str
    columns: Mapping[str, str]  # each column's name in csv and json, and its heading
    rows: tuple[Row, ...]  # the same methods in the same order in every block of a table
    dataset: str | None = None  # that the block is about; None for averages and for blocks about several
    key: str = ""  # in the papers' layout, the column that the block has of every data set
    lower: frozenset[str] = frozenset()  # columns of which the lowest number is the best
    whole: frozenset[str] = frozenset()  # columns of counts
    costs: frozenset[str] = frozenset()  # columns of other costs, which differ by magnitudes

    def decimals(self, key: str, value: float, digits: int) -> int:
        """How many to show of a column's number: none of a count, of another cost three significant digits."""
        magnitude = int(f"{value:.2e}".partition("e")[2])
        return 0 if key in self.whole else max(0, 2 - magnitude) if key in self.costs else digits

    def for_reading(self) -> Block:
        """The block without published rows that have nothing to say in it.

        Missing measured numbers stay visible, but not where only published numbers have a place.
        """
        published = [row for row in self.rows if row.source and row.present]
        measured = [row for row in self.rows if not row.source]
        if any(row.present for row in measured) or not published:
            return replace(self, rows=(*measured, *published))
        filled = [key for key in self.columns if any(row.cells[key] is not None for row in published)]
        rows = tuple(replace(row, cells={key: row.cells[key] for key in filled}) for row in published)
        return replace(self, columns={key: self.columns[key] for key in filled}, rows=rows)


@dataclass(frozen=True)
class Table:
    """A table before it takes a format."""

    protocol: str
    title: str
    blocks: tuple[Block, ...]
    legend: tuple[str, ...]
    warnings: tuple[str, ...]
    averages: Block | None = None  # over the data sets, once more in one place; None for a single data set


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
            number of shots) with the data sets as columns, "average" for the average over the data sets alone. Where
            the data sets are columns anyway, only "average" changes anything.
        published: which published rows to add, "measured" or "all"; None for none.
        metrics: keys, labels or groups of the metrics to show, in this order; none for the protocol's own.

    Raises:
        ResultsError: runs of another protocol, two runs with nothing to tell them apart, an unknown metric, several
            metrics where the columns are numbers of shots, or an average over one data set.
    """
    protocol_name = check_protocol(runs, protocol_name)
    protocol = PROTOCOLS[protocol_name]
    chosen = chosen_metrics(protocol, metrics)
    requested = [metric for metric in chosen if metric not in protocol.metrics]
    every = (*protocol.metrics, *requested)
    methods = group_methods(runs, protocol)
    by_dataset, by_shots = protocol.columns_by == "dataset", protocol.columns_by == "shots"
    sources = {run.source_dataset for run in runs} - {None}
    datasets = sorted(datasets_of(runs), key=lambda name: by_dataset and name not in sources)
    shots = sorted({run.shots for run in runs}) if by_shots else [None]

    # a number stands at a place, which is a data set or an average over them, under a metric or a number of shots
    keys, title = {metric.key: metric.label for metric in chosen}, protocol.title
    lower = frozenset(metric.key for metric in chosen if metric.lower)
    whole = frozenset(metric.key for metric in chosen if metric.whole)
    costs = frozenset(metric.key for metric in chosen if metric.group == COST and not metric.whole)
    if by_shots:
        if len(chosen) > 1:
            raise ResultsError(f"a table by shots shows one metric: choose one of {', '.join(keys)} with --metrics")
        every, (metric,) = chosen, chosen
        title = f"{title}: {metric.label}" if requested else title
        keys = {str(count): shots_text(count) for count in shots}
        lower, whole, costs = (frozenset(keys) if kind else frozenset() for kind in (lower, whole, costs))
    places, targets = list(datasets), [name for name in datasets if not (by_dataset and name in sources)]
    if len(targets) > 1:
        short = by_dataset and AVERAGE not in datasets
        average = AVERAGE if short else f"{AVERAGE} over {len(targets)} data sets"
        places.append(average)
    elif group == "average":
        raise ResultsError(f"no average over data sets: the runs are on {printable(', '.join(datasets))} alone")
    rows = []
    for method in methods:
        cells: dict[tuple[str, str], Summary | None] = {}
        for place, metric, count in product(places, every, shots):
            key = str(count) if by_shots else metric.key
            if metric.harmonic_of:
                cells[place, key] = harmonic_of_averages(*(cells[place, part] for part in metric.harmonic_of))
            elif place in datasets:
                cells[place, key] = method.summary(metric, place, count)
            else:
                cells[place, key] = average_over([cells[name, key] for name in targets])
        rows.append(Row(method, cells))
    counting = [
        line.replace(_IN_PERCENT, _MOSTLY) if any(not m.percent for m in chosen) else line for line in _COUNTING
    ]
    own = protocol.legend
    if len(requested) == len(chosen):  # it is about accuracy
        own = (_COLUMNS,) if by_shots else ()
    by_metric = dict.fromkeys(metric.legend for metric in chosen if metric.legend)
    legend = [*counting, *own, *by_metric, *_runs_legend(runs, methods, by_shots, sources)]
    if published is not None:
        trainers = {method.trainer for method in methods}
        # published few-shot values are accuracies
        entries = () if by_shots and requested else chosen_entries(protocol_name, trainers, published)
        row_keys = list(keys) if by_shots else [metric.key for metric in every]
        published_shots = None if by_shots else SHOTS
        rows, places, notes = _with_published(rows, places, row_keys, targets, entries, published_shots)
        legend += notes

    def across(key: str) -> tuple[Row, ...]:
        return tuple(replace(row, cells={place: row.cells[place, key] for place in places}) for row in rows)

    def within(place: str) -> tuple[Row, ...]:
        return tuple(replace(row, cells={key: row.cells[place, key] for key in keys}) for row in rows)

    def kinds_of(key: str, columns: Iterable[str]) -> dict[str, frozenset[str]]:
        return {name: frozenset(columns) for name, keys in kinds.items() if key in keys}

    kinds = {"lower": lower, "whole": whole, "costs": costs}
    titles = {key: label if requested else title for key, label in keys.items()} if by_dataset else keys
    averages = None
    if len(targets) > 1:
        averages = Block(average, {key: average} if by_dataset and len(keys) == 1 else titles, within(average), **kinds)
    if group == "average":
        places = [place for place in places if place not in datasets]
    if by_dataset:
        labels = {place: f"{place} (source)" if place in sources else place for place in places}
        blocks = [Block(titles[key], labels, across(key), **kinds_of(key, labels)) for key in keys]
    elif group == "metric":
        labels = {place: place for place in places}
        blocks = [Block(label, labels, across(key), key=key, **kinds_of(key, labels)) for key, label in keys.items()]
    else:
        blocks = [Block(place, keys, within(place), place if place in datasets else None, **kinds) for place in places]
    entering = {metric.key for metric in chosen}.union(*(metric.harmonic_of or () for metric in chosen))
    read = [metric for metric in every if metric.key in entering and metric.of_run]
    warnings = [*_warnings(methods, read, list(product(datasets, shots)))]
    if any(metric.group == COST and not metric.whole for metric in requested):
        first_on: dict[str, Run] = {}
        for run in (run for method in methods for run in method.runs):
            first_on.setdefault(run.device, run)
        legend.append(
            f"Measured on {'; '.join(sorted(first_on))}. Time and memory of another machine, or of a busy one, are not "
            "comparable."
        )
        if len(first_on) > 1:
            listed = "; ".join(f"{device}: {run.path}" for device, run in sorted(first_on.items()))
            warnings.append(f"time and memory of different devices stand side by side, not comparable ({listed})")
    legend, warnings = tuple(map(printable, dict.fromkeys(legend))), tuple(map(printable, warnings))
    return Table(protocol_name, title, tuple(blocks), legend, warnings, averages)


def _with_published(
    rows: list[Row],
    places: list[str],
    keys: Sequence[str],
    targets: Sequence[str],
    entries: Sequence[Entry],
    shots: int | None,
) -> tuple[list[Row], list[str], list[str]]:
    """Add a row per published entry; returns rows, places, and lines for the legend: sources, and what to know.

    Published averages are over the literature's data sets. Where the table's data sets, `targets`, are others, its
    average has no published counterpart and the published averages get a place of their own.
    """
    if not entries:
        return rows, places, ["Published values: none are known for these methods in this protocol."]
    same_average = set(map(canonical_dataset, targets)) == averaged_datasets(entries)
    averages = [entry.average_over for entry in entries if entry.average_over]
    apart = f"published average over {averages[0]} data sets" if averages and not same_average else None
    if apart is not None:
        places = [*places, apart]
        rows = [replace(row, cells={**row.cells, **{(apart, key): None for key in keys}}) for row in rows]

    def value(entry: Entry, place: str, metric: str) -> Summary | None:
        if place == apart or (place.startswith(AVERAGE) and same_average):
            return entry.average(metric)
        return None if place.startswith(AVERAGE) else entry.value(metric, place)

    shown, numbers = [], {}  # numbers of the footnotes
    for entry in entries:
        cells = {(place, key): value(entry, place, key) for place in places for key in keys}
        if any(cells.values()):
            shown.append(entry)
            number = numbers.setdefault(entry.footnote, len(numbers) + 1)
            method = Method(f"{entry.label}, published", entry.trainer or entry.method, "", BACKBONE, shots, ())
            rows = [*rows, Row(method, cells, entry.footnote, number)]
    legend = [PUBLISHED_NOTE]
    legend += [f"{mark}: {words}" for mark, words in MARKS.items() if any(mark in entry.marks for entry in shown)]
    legend += [AVERAGE_H_NOTE] if any(entry.average("average_H") for entry in shown) else []
    legend += [BMIP_AVERAGES_NOTE] if any(entry.method == "BMIP" and entry.average_over for entry in shown) else []
    return rows, places, [*legend, *(f"[{number}] {footnote}." for footnote, number in numbers.items())]


def _runs_legend(runs: Sequence[Run], methods: Sequence[Method], by_shots: bool, sources: set[str]) -> Iterable[str]:
    if len({run.dataset for run in runs}) > 1:
        how = "each seed's average over the data sets first, over the seeds that all of them have"
        left_out = ", source data sets left out" if sources else ""
        yield (
            f"average: {how}{left_out}; its deviation is over seeds. {INTERVALS}, Student's: over the seeds' averages, "
            f"for training again on these data sets; over {MIN_DATASETS} data sets' means or more, for other data sets."
        )
    yield f"Backbone: {', '.join(sorted({run.backbone for run in runs}))}."
    if any(run.demonstration for run in runs):
        yield "A bundled backbone is a small demonstration model: not comparable with any published number."
    if any(run.transductive for run in runs):
        yield f"transductive: {MARKS['transductive']}"
    trained = [method for method in methods if not method.deterministic]
    if trained and not by_shots:
        yield f"Shots per class: {', '.join(map(str, sorted({method.shots for method in trained})))}."
    for method in methods:
        keys = sorted(differing_settings(method.runs))
        if keys:
            more = f" and {len(keys) - MAX_KEYS} more" if len(keys) > MAX_KEYS else ""
            yield f"{method.label}: the columns' runs differ in {', '.join(keys[:MAX_KEYS])}{more}."
        changed = dict.fromkeys(f"{key} {value}" for run in method.runs for key, value in run.overrides.items())
        if changed:
            yield f"{method.label}: changed: {', '.join(changed)}."
        if tried := sorted({run.tuning_trials for run in method.runs} - {0}):
            yield f"{method.label}: tuned: the best of {', '.join(map(str, tried))} trials on validation images."
    rules = {method.selection_rule for method in trained}
    if len(rules) == 1:
        yield f"Selection rule: {rules.pop()}."
    elif rules:
        yield f"Selection rules: {'; '.join(f'{method.label}: {method.selection_rule}' for method in trained)}."


def _warnings(
    methods: Sequence[Method], metrics: Sequence[Metric], places: Sequence[tuple[str, int | None]]
) -> Iterable[str]:
    """What a reader must be told about a table's runs, each warning naming the paths it is about."""
    # what is missing, and is there -> where, and a folder beside it
    gaps: dict[tuple[str, tuple[int, ...], tuple[int, ...]], list[tuple[str, object]]] = defaultdict(list)
    for dataset, shots in places:
        found = [(method, method.runs_on(dataset, shots)) for method in methods]
        # a method that trains nothing needs no second seed
        expected = {run.seed for method, runs in found if not method.deterministic for run in runs}
        for method, runs in found:
            there = sorted(run.seed for run in runs)
            missing = () if method.deterministic and runs else sorted(expected.difference(there))
            if missing or not runs:
                place = dataset if shots is None else f"{dataset}, {shots_text(shots)}"
                gap = method.label, tuple(missing) if runs else (), tuple(there)
                gaps[gap].append((place, runs and runs[0].path.parent))
    for (label, missing, there), where in gaps.items():
        place, beside = "; ".join(place for place, _ in where), where[0][1]
        if not there:
            yield f"{label} has no run on {place}"
        else:
            seeds = f"seed {', '.join(map(str, missing))}, this one only {', '.join(map(str, there))}"
            yield f"{label} on {place}: other rows have {seeds} (beside {beside})"
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
            equal = [metric for metric in metrics if metric.group != COST and not metric.seeded]
            differing = [metric.label for metric in equal if len(set(map(metric.of_run, runs))) > 1]
            if differing:
                paths = ", ".join(str(run.path) for run in runs)
                yield f"{method.label} trains nothing, yet {', '.join(differing)} differ on {dataset} between {paths}"
    yield from comparability([run for method in methods for run in method.runs])


def document(table: Table, digits: int = 2) -> Document:
    """The table for the writers of `formats`, rounded to so many decimals for reading."""
    grids = []
    for block in map(Block.for_reading, table.blocks):
        best = {}  # each column's best measured mean as it is shown, where two rows or more have one
        for key in block.columns:
            measured = [row.cells[key] for row in block.rows if not row.source]
            means = [round(cell.mean, block.decimals(key, cell.mean, digits)) for cell in measured if cell is not None]
            best[key] = (min if key in block.lower else max)(means) if len(means) > 1 else None
        lines = []
        for row in block.rows:
            seeds = "deterministic" if row.deterministic else ", ".join(map(str, row.seeds))
            seeds = f"{seeds} (n={len(row.seeds)})" if row.seeds else MISSING
            if row.source:
                seeds = f"published [{row.source_number}]"
            numbers = []
            for key, cell in row.cells.items():
                if cell is None:
                    numbers.append(Number())
                    continue
                decimals = block.decimals(key, cell.mean, digits)
                style = f",.{decimals}f"
                spread = "" if cell.std is None or (key in block.whole and not cell.std) else f" ± {cell.std:{style}}"
                fewer = "" if cell.n == len(row.seeds) or cell.deterministic else f" (n={cell.n})"
                leads = not row.source and round(cell.mean, decimals) == best[key]
                numbers.append(Number(f"{cell.mean:{style}}{spread}{fewer}", cell.mean, leads))
            lines.append(Line((row.method.label, seeds), numbers, row.method.trainer, published=bool(row.source)))
        headings = ["Method", "Seeds", *block.columns.values()]
        # where the data sets are columns, a column goes with its data set
        columns = () if block.dataset is not None else tuple(block.columns)
        grids.append(Grid(block.title, headings, 2, lines, block.dataset or "", columns))
    if table.averages is not None:
        grids += _intervals(table.averages, digits)
    blocks = [
        {"title": _block_name(table, block), "columns": [*block.columns], "rows": [*map(_json_row, block.rows)]}
        for block in table.blocks
    ]
    content = {"protocol": table.protocol, "title": table.title, "blocks": blocks}
    content |= {"legend": table.legend, "warnings": table.warnings}
    records = _csv_records(table)
    return Document(table.title, grids, table.legend, table.warnings, records, content, explain_best=True)


def _intervals(averages: Block, digits: int) -> Iterable[Grid]:
    """How sure the averages over data sets are: two lines for each measured method, columns without any left out."""
    filled = [
        key for key in averages.columns if any(row.cells[key] and row.cells[key].averaged for row in averages.rows)
    ]
    lines = []
    for row in averages.rows:
        for over in ("seeds", "data sets"):
            cells = [row.cells[key] for key in filled]
            found = [cell and (cell.over_seeds if over == "seeds" else cell.over_datasets) for cell in cells]
            found = [interval if interval is not None and interval.low is not None else None for interval in found]
            if counts := sorted({interval.n for interval in found if interval is not None}):
                styles = [
                    one and f",.{averages.decimals(key, one.mean, digits)}f"
                    for key, one in zip(filled, found, strict=True)
                ]
                numbers = [
                    Number() if one is None else Number(f"{one.low:{style}} to {one.high:{style}}", one.low)
                    for one, style in zip(found, styles, strict=True)
                ]
                names = row.method.label, f"{over} (n={' - '.join(map(str, counts))})"
                lines.append(Line(names, numbers, row.method.trainer))
    if lines:
        yield Grid(INTERVALS, ["Method", "over", *(averages.columns[key] for key in filled)], 2, lines)


def _block_name(table: Table, block: Block) -> str:
    """A block in csv and json: "16" where a heading says "16 shots"."""
    return block.key if block.key and table.protocol == "few_shot" else block.title


def _csv_records(table: Table) -> list[list[object]]:
    """One line per number, with a column per seed, below the head."""
    seeds = sorted({seed for block in table.blocks for row in block.rows for seed in row.seeds})
    facts = ("protocol", "block", "method", "trainer", "setting", "backbone", "shots", "selection_rule", "source")
    ends = [f"{over}_{end}" for over in ("seeds", "datasets") for end in ("low", "high")]  # 95 %, of averages
    numbers = ["n", "mean", "std", *ends]
    records: list[list[object]] = [[*facts, "column", *numbers, *(f"seed_{seed}" for seed in seeds)]]
    for block, row in ((part, row) for part in table.blocks for row in part.rows):
        for key, cell in row.cells.items():
            # in a few-shot table, the number of shots is a column's name, or a block's in the papers' layout
            places = (block.key, key) if table.protocol == "few_shot" else ()
            shots = next((place for place in places if place.isdigit()), row.method.shots)
            record = [table.protocol, _block_name(table, block), row.method.label, row.method.trainer]
            record += [row.method.setting, row.method.backbone, shots, row.method.selection_rule, row.source, key]
            record += [0, None, None] if cell is None else [None if row.source else cell.n, cell.mean, cell.std]
            for over in (cell and cell.over_seeds, cell and cell.over_datasets):
                record += [None, None] if over is None else [over.low, over.high]
            records.append([*record, *(None if cell is None else cell.values.get(seed) for seed in seeds)])
    return records


def _json_row(row: Row) -> dict[str, object]:
    facts = {"method": row.method.label}
    facts |= {name: getattr(row.method, name) for name in ("trainer", "setting", "backbone", "shots", "selection_rule")}
    facts |= {"seeds": row.seeds, "deterministic": row.deterministic, "source": row.source or None}
    parts = ("mean", "std", "n", "seeds", "values")
    cells = {}
    for key, cell in row.cells.items():
        cells[key] = cell and {part: getattr(cell, part) for part in parts}
        if cell is not None and cell.averaged:
            for over, interval in (("over_seeds", cell.over_seeds), ("over_datasets", cell.over_datasets)):
                cells[key][over] = interval and asdict(interval)
    return facts | {"cells": cells}
