"""Puts published numbers into a table as rows of their own, below the measured ones."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace

from reporting.blocks import Block, Row
from reporting.layouts import AVERAGE, Protocol
from reporting.methods import Method
from reporting.names import canonical_dataset, trainer_order
from reporting.published import AVERAGE_H_NOTE, BMIP_AVERAGES_NOTE, Entry, load_published
from reporting.statistics import Summary

CHOICES = ("measured", "all")
BACKBONE, SHOTS = "ViT-B/16", 16


def add_published(parser: argparse.ArgumentParser) -> None:
    """Declare --published and --published-all, which set `published` to one of `CHOICES` or leave it None."""
    parser.add_argument(
        "--published",
        action="store_const",
        const="measured",
        help="add published numbers of the methods in the table, and of BMIP, from their authors",
    )
    parser.add_argument(
        "--published-all",
        action="store_const",
        const="all",
        dest="published",
        help="add every published number that is known, other methods' and other groups' runs included",
    )


def with_published(
    blocks: Sequence[Block], name: str, protocol: Protocol, *, datasets: Collection[str], choice: str
) -> tuple[list[Block], list[str]]:
    """Append a row per published entry to every block.

    Published averages are over the literature's data sets. Where the table's data sets are others, its average has no
    published counterpart and the published averages get a place of their own.

    Args:
        blocks: a table's blocks, one per data set and their average, or one with the data sets as columns.
        name: the protocol's name.
        protocol: the protocol.
        datasets: the data sets that the table averages over.
        choice: "measured" for the table's methods and BMIP as their authors published them, "all" for every entry.

    Returns:
        The blocks with the rows, and lines for the legend: sources, and what to know.
    """
    trainers = {row.method.trainer for row in blocks[0].rows}
    entries = _entries(name, protocol, trainers, choice)
    if not entries:
        return list(blocks), ["Published values: none are known for these methods in this protocol."]
    same_average = {canonical_dataset(dataset) for dataset in datasets} == _averaged(entries)
    blocks = [*blocks] if same_average else _with_place_for_averages(blocks, protocol, entries)
    wanted = [_values(entry, block, protocol, same_average) for entry in entries for block in blocks]
    per_entry = [wanted[start : start + len(blocks)] for start in range(0, len(wanted), len(blocks))]
    shown = [
        (entry, cells)
        for entry, cells in zip(entries, per_entry, strict=True)
        if any(cell is not None for row in cells for cell in row)
    ]
    numbers = _footnote_numbers([entry for entry, _ in shown])
    rows_of = [
        tuple(_row(entry, cells[index], numbers[entry.footnote]) for entry, cells in shown)
        for index in range(len(blocks))
    ]
    blocks = [replace(block, rows=(*block.rows, *rows)) for block, rows in zip(blocks, rows_of, strict=True)]
    return blocks, _legend([entry for entry, _ in shown], numbers)


def _entries(name: str, protocol: Protocol, trainers: Collection[str], choice: str) -> list[Entry]:
    # an open-world table has the base-to-new numbers too
    protocols = {name, "base_to_new"} if name == "open_world" else {name}
    if protocol.columns_by == "shots":
        return []
    entries = [entry for entry in load_published() if entry.protocol in protocols]
    if choice == "measured":
        entries = [entry for entry in entries if not entry.rerun and entry.trainer in {*trainers, "BMIP"}]
    return sorted(entries, key=lambda entry: trainer_order(entry.trainer or entry.method))


def _averaged(entries: Sequence[Entry]) -> set[str]:
    """The data sets that published averages are over: those of an entry that has them all."""
    full = [entry for entry in entries if entry.average_over]
    for entry in full:
        datasets = set(next(iter(entry.values.values()))) - {AVERAGE}
        targets = datasets if len(datasets) == entry.average_over else datasets - {"imagenet"}
        if len(targets) == entry.average_over:
            return targets
    return set()


def _with_place_for_averages(blocks: Sequence[Block], protocol: Protocol, entries: Sequence[Entry]) -> list[Block]:
    """A further block, or column, for published averages that are over other data sets than the table's."""
    counts = [entry.average_over for entry in entries if entry.average_over]
    if not counts:
        return list(blocks)
    title = f"published average over {counts[0]} data sets"
    if protocol.columns_by == "dataset":
        (block,) = blocks
        rows = tuple(replace(row, cells=(*row.cells, None)) for row in block.rows)
        return [replace(block, keys=(*block.keys, title), labels=(*block.labels, title), rows=rows)]
    empty = tuple(replace(row, cells=tuple(None for _ in row.cells)) for row in blocks[0].rows)
    return [*blocks, replace(blocks[0], title=title, rows=empty, dataset=None)]


def _values(entry: Entry, block: Block, protocol: Protocol, same_average: bool) -> tuple[Summary | None, ...]:
    """An entry's numbers in a block's columns."""
    if protocol.columns_by == "metric":
        read = _reader(entry, block.dataset or block.title, same_average)
        return tuple(read(key) for key in block.keys)
    metric = protocol.metrics[0].key
    return tuple(_reader(entry, key, same_average)(metric) for key in block.keys)


def _reader(entry: Entry, place: str, same_average: bool) -> Callable[[str], Summary | None]:
    """How to read a metric of an entry at a data set, at the table's own average, or at the published one."""
    if place.startswith("published average"):
        return entry.average
    if place.startswith(AVERAGE):
        return entry.average if same_average else lambda metric: None
    return lambda metric: entry.value(metric, place)


def _row(entry: Entry, cells: tuple[Summary | None, ...], number: int) -> Row:
    label = f"{entry.label}, published"
    method = Method(label, entry.trainer or entry.method, "", BACKBONE, SHOTS, ())
    return Row(method, cells, source=entry.footnote, source_number=number)


def _footnote_numbers(entries: Sequence[Entry]) -> dict[str, int]:
    numbers: dict[str, int] = {}
    for entry in entries:
        numbers.setdefault(entry.footnote, len(numbers) + 1)
    return numbers


def _legend(entries: Sequence[Entry], numbers: dict[str, int]) -> list[str]:
    lines = [
        f"Rows marked published were not measured here: {BACKBONE}, {SHOTS} shots, as stated by the source in "
        "brackets. They enter no average of measured numbers."
    ]
    if any(entry.average("average_H") is not None for entry in entries):
        lines.append(AVERAGE_H_NOTE)
    if any(entry.method == "BMIP" and entry.average_over for entry in entries):
        lines.append(BMIP_AVERAGES_NOTE)
    return [*lines, *(f"[{number}] {footnote}." for footnote, number in numbers.items())]
