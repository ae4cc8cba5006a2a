"""The `table` sub-command: one protocol's results as a table, mean and spread over seeds.

python -m reporting table --protocol open_world output/open_world
python -m reporting table --published --format latex --output table.tex output/base_to_new
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from common.commandline import printable
from reporting import published_rows
from reporting.blocks import Block, Row, Table, chosen_columns, turned
from reporting.checks import print_warnings, warnings_about
from reporting.files import check_target, write_file
from reporting.formats import FORMATS
from reporting.layouts import AVERAGE, PROTOCOLS, Column, Protocol, blocks_of, source_datasets
from reporting.methods import Method, check_protocol, differing_between_columns, group_methods
from reporting.selection import of_protocol
from reporting.statistics import Summary, average_over, harmonic_of_averages, summarise
from results.schema import ResultsError, Run, load_runs

NAME = "table"
HELP = "one protocol's results as a table: mean and standard deviation over seeds"
_MAX_KEYS = 5


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
        published: which published rows to add, one of `published_rows.CHOICES`; None for none.
        metrics: keys or labels of the metrics to show, in this order; none for all.

    Raises:
        ResultsError: runs of another protocol, two runs with nothing to tell them apart, or an unknown metric.
    """
    protocol_name = check_protocol(runs, protocol_name)
    protocol = PROTOCOLS[protocol_name]
    chosen = _chosen_metrics(protocol, metrics)
    methods = group_methods(runs, protocol)
    columns_by_title = blocks_of(protocol, runs)
    by_dataset = protocol.columns_by != "dataset"
    blocks = [_block(title, columns, methods, by_dataset) for title, columns in columns_by_title.items()]
    sources = source_datasets(runs)
    if not by_dataset:
        blocks = [_with_average_column(blocks[0], sources)]
    elif len(blocks) > 1:
        blocks.append(_average_block(blocks, next(iter(columns_by_title.values())), methods))
    legend = [*_counting_legend(), *protocol.legend, *_runs_legend(runs, methods, protocol)]
    if published is not None:
        targets = {run.dataset for run in runs} - sources
        blocks, notes = published_rows.with_published(
            blocks, protocol_name, protocol, datasets=targets, choice=published
        )
        legend += notes
    if protocol.columns_by == "metric":
        blocks = chosen_columns(blocks, chosen)
        needed = {
            *chosen,
            *(key for metric in protocol.metrics if metric.key in chosen for key in metric.harmonic_of or ()),
        }
        columns_by_title = {
            title: [column for column in columns if column.key in needed] for title, columns in columns_by_title.items()
        }
    if group == "metric" and by_dataset:
        blocks = turned(blocks)
    warnings = warnings_about(methods, columns_by_title)
    return Table(
        protocol_name, protocol.title, tuple(blocks), tuple(map(printable, legend)), tuple(map(printable, warnings))
    )


def _chosen_metrics(protocol: Protocol, names: Sequence[str]) -> list[str]:
    """Keys of the metrics that these names, keys or labels, stand for; all of them for no name."""
    keys = {metric.label.lower(): metric.key for metric in protocol.metrics}
    keys |= {metric.key.lower(): metric.key for metric in protocol.metrics}
    unknown = [name for name in names if name.lower() not in keys]
    if unknown:
        known = ", ".join(metric.key for metric in protocol.metrics)
        raise ResultsError(f"no metric {unknown[0]!r} in {protocol.title}; choose from {known}")
    return list(dict.fromkeys(keys[name.lower()] for name in names)) or [metric.key for metric in protocol.metrics]


def _block(title: str, columns: Sequence[Column], methods: Sequence[Method], by_dataset: bool) -> Block:
    rows = []
    for method in methods:
        cells = [_cell([run for run in method.runs if column.covers(run)], column) for column in columns]
        rows.append(Row(method, tuple(_with_harmonic_means(columns, cells))))
    keys, labels = tuple(column.key for column in columns), tuple(column.label for column in columns)
    return Block(title, keys, labels, tuple(rows), title if by_dataset else None)


def _cell(runs: Sequence[Run], column: Column) -> Summary | None:
    read = column.metric.of_run
    if read is None:
        return None
    values = {run.seed: value for run in runs if (value := read(run)) is not None}
    return summarise(values, deterministic=all(run.deterministic for run in runs))


def _with_harmonic_means(columns: Sequence[Column], cells: Sequence[Summary | None]) -> list[Summary | None]:
    """Fill the columns that are computed from the averages of two others."""
    by_key = {column.key: cell for column, cell in zip(columns, cells, strict=True)}
    return [
        harmonic_of_averages(*(by_key[key] for key in column.metric.harmonic_of)) if column.metric.harmonic_of else cell
        for column, cell in zip(columns, cells, strict=True)
    ]


def _average_block(blocks: Sequence[Block], columns: Sequence[Column], methods: Sequence[Method]) -> Block:
    rows = []
    for index, method in enumerate(methods):
        per_column = zip(columns, *(block.rows[index].cells for block in blocks), strict=True)
        cells = [None if column.metric.harmonic_of else average_over(cells) for column, *cells in per_column]
        rows.append(Row(method, tuple(_with_harmonic_means(columns, cells))))
    return Block(f"{AVERAGE} over {len(blocks)} data sets", blocks[0].keys, blocks[0].labels, tuple(rows))


def _with_average_column(block: Block, sources: set[str]) -> Block:
    """Append the average over the target data sets, when there are several."""
    targets = [index for index, key in enumerate(block.keys) if key not in sources]
    if len(targets) < 2:
        return block
    rows = tuple(
        Row(row.method, (*row.cells, average_over([row.cells[index] for index in targets]))) for row in block.rows
    )
    return Block(block.title, (*block.keys, AVERAGE), (*block.labels, AVERAGE), rows)


def _counting_legend() -> tuple[str, ...]:
    return (
        "All numbers in percent; mean ± sample standard deviation (n - 1) over the seeds listed; one seed (n=1): no "
        "deviation. deterministic: nothing is trained, every seed gives the same number.",
        'A "-" stands where no finished run has the number; (n=k) in a cell: fewer seeds than its row lists.',
    )


def _runs_legend(runs: Sequence[Run], methods: Sequence[Method], protocol: Protocol) -> list[str]:
    lines = []
    if len({run.dataset for run in runs}) > 1:
        lines.append(
            "average: each seed's average over the data sets first, over the seeds that all of them have"
            + (", source data sets left out." if source_datasets(runs) else ".")
        )
    lines.append(f"Backbone: {', '.join(sorted({run.backbone for run in runs}))}.")
    if any(run.demonstration for run in runs):
        lines.append("A bundled backbone is a small demonstration model: not comparable with any published number.")
    trained = [method for method in methods if not method.deterministic]
    if trained and protocol.columns_by != "shots":
        lines.append(f"Shots per class: {', '.join(map(str, sorted({method.shots for method in trained})))}.")
    for method in methods:
        keys = sorted(differing_between_columns(method))
        if keys:
            more = f" and {len(keys) - _MAX_KEYS} more" if len(keys) > _MAX_KEYS else ""
            lines.append(f"{method.label}: the columns' runs differ in {', '.join(keys[:_MAX_KEYS])}{more}.")
        changed = {f"{key} {value}": None for run in method.runs for key, value in run.overrides.items()}
        if changed:
            lines.append(f"{method.label}: changed: {', '.join(changed)}.")
    rules = {method.selection_rule for method in trained}
    if len(rules) == 1:
        lines.append(f"Selection rule: {rules.pop()}.")
    elif rules:
        lines.append(f"Selection rules: {'; '.join(f'{method.label}: {method.selection_rule}' for method in trained)}.")
    return lines


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the sub-command's arguments."""
    parser.add_argument("runs", nargs="+", metavar="RUNS", help="results.json files, or folders to search for them")
    parser.add_argument(
        "--protocol", choices=sorted(PROTOCOLS), help="only its runs; default: the one that all runs share"
    )
    parser.add_argument(
        "--group",
        choices=("dataset", "metric"),
        help="a block per data set, or per metric with the data sets as columns, as papers have it "
        "(default: metric where there are several data sets)",
    )
    published_rows.add_published(parser)
    parser.add_argument(
        "--metrics",
        metavar="KEY,KEY",
        help="only these metrics, in this order, such as base,new,H (default: all of the protocol's)",
    )
    parser.add_argument("--format", choices=sorted(FORMATS), default="md")
    parser.add_argument("--digits", type=int, default=2, help="decimals in md, latex and html (default: %(default)s)")
    parser.add_argument("--output", "-o", type=Path, metavar="FILE", help="write there instead of to the terminal")
    parser.add_argument("--force", action="store_true", help="replace FILE where it exists")


def run(arguments: argparse.Namespace) -> None:
    """Build the table and write it out.

    Raises:
        ValueError: unusable runs or arguments.
        OSError: a file cannot be read or written.
    """
    if not 0 <= arguments.digits <= 10:
        raise ValueError(f"--digits must be between 0 and 10, got {arguments.digits}")
    if arguments.output is not None:
        check_target(arguments.output, arguments.force)
    runs = of_protocol(load_runs(arguments.runs), arguments.protocol)
    group = arguments.group or ("metric" if len({run.dataset for run in runs}) > 1 else "dataset")
    metrics = () if arguments.metrics is None else [name.strip() for name in arguments.metrics.split(",")]
    table = build_table(runs, arguments.protocol, group=group, published=arguments.published, metrics=metrics)
    text = FORMATS[arguments.format](table, arguments.digits)
    # csv has no place for them, and a file is not looked at while it is written
    if arguments.format == "csv" or arguments.output is not None:
        print_warnings(table.warnings)
    if arguments.output is None:
        sys.stdout.write(text)
    else:
        write_file(arguments.output, text, arguments.force)
