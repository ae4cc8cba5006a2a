"""The `plot` sub-command: one plot of runs, as PNG or SVG.

python -m reporting plot base_new output/open_world -o base_new.svg
python -m reporting plot confusion output/open_world --trainer BMIP --dataset EuroSAT -o confusion.png
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from reporting.files import check_target, write_file
from reporting.methods import check_protocol
from reporting.plots import KINDS
from reporting.plots.data import Options
from reporting.plots.style import FILE_FORMATS, PlotError, render, style
from reporting.selection import add_selection, selected_runs
from results.schema import Run

NAME = "plot"
HELP = "a plot of runs, as PNG or SVG"


def draw_plot(
    kind: str, runs: Sequence[Run], file_format: str, options: Options | None = None, dpi: int = 150
) -> bytes:
    """A plot as the content of a file.

    Args:
        kind: one of `KINDS`.
        runs: the runs.
        file_format: png or svg.
        options: the reader's choices.
        dpi: dots per inch of a PNG.

    Raises:
        PlotError: the runs do not hold what this kind shows.
        ResultsError: the runs cannot stand in one plot.
    """
    with style():
        return render(KINDS[kind].draw(runs, options or Options()), file_format, dpi)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the sub-command's arguments."""
    parser.epilog = "kinds: " + "; ".join(f"{name}: {kind.HELP}" for name, kind in KINDS.items())
    parser.add_argument("kind", choices=sorted(KINDS), metavar="KIND", help=", ".join(sorted(KINDS)))
    parser.add_argument("runs", nargs="+", metavar="RUNS", help="results.json files, or folders to search for them")
    parser.add_argument("--output", "-o", type=Path, required=True, metavar="FILE", help="ends in .png or .svg")
    parser.add_argument("--metric", default="", help="which number (default: H, or accuracy over all classes)")
    parser.add_argument("--baseline", default="", help="gain: over which trainer (default: ZeroshotCLIP)")
    parser.add_argument("--split", default="", help="confusion, tsne: which class split (default: all)")
    parser.add_argument("--dpi", type=int, default=150, help="dots per inch of a PNG (default: %(default)s)")
    parser.add_argument("--force", action="store_true", help="replace FILE where it exists")
    add_selection(parser)


def run(arguments: argparse.Namespace) -> None:
    """Draw the plot and write it.

    Raises:
        ValueError: unusable runs or arguments.
        OSError: a file cannot be read or written.
    """
    path: Path = arguments.output
    file_format = path.suffix.lower().removeprefix(".")
    if file_format not in FILE_FORMATS:
        raise PlotError(f"{path}: the name must end in {' or '.join(f'.{name}' for name in FILE_FORMATS)}")
    if not 10 <= arguments.dpi <= 1200:
        raise PlotError(f"--dpi must be between 10 and 1200, got {arguments.dpi}")
    check_target(path, arguments.force)
    runs = selected_runs(arguments)
    check_protocol(runs, None)  # before matplotlib is imported
    options = Options(arguments.metric, arguments.baseline, arguments.split)
    write_file(path, draw_plot(arguments.kind, runs, file_format, options, arguments.dpi), arguments.force)
