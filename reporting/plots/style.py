"""How all plots look: colours that colour-blind readers can tell apart, panels, and files that come out the same."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette without its yellow, which is too pale on white; https://jfly.uni-koeln.de/color/
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#7F7F7F")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "<", ">", "h")
DASHES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1, 1)), (0, (4, 1, 1, 1)))
SETTINGS = {
    "font.family": "DejaVu Sans",  # comes with matplotlib, so that every machine draws the same
    "font.size": 9.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#DDDDDD",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "svg.hashsalt": "reporting",
    "svg.fonttype": "path",
    "text.parse_math": False,  # a name with a dollar sign is a name, not a formula
}
FILE_FORMATS = ("png", "svg")
# Without these entries a file would hold the date and the version that drew it.
_METADATA = {"png": {"Software": None}, "svg": {"Date": None, "Creator": None}}


class PlotError(ValueError):
    """The runs do not hold what a plot shows; the message says what is missing and how to get it."""


@contextmanager
def style() -> Iterator[None]:
    """Draw and save with these settings, whatever the reader's matplotlibrc says.

    Raises:
        PlotError: matplotlib is not installed.
    """
    try:
        import matplotlib as mpl
    except ImportError as error:
        raise PlotError("plots need matplotlib: pip install matplotlib") from error
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(SETTINGS)
        yield


def look(index: int) -> dict[str, Any]:
    """Colour, marker and line style of the index-th method; no two of the first 88 look alike."""
    return {
        "color": COLOURS[index % len(COLOURS)],
        "marker": MARKERS[index % len(MARKERS)],
        "linestyle": DASHES[index // len(COLOURS) % len(DASHES)],
    }


def panels(count: int, *, columns: int = 4, size: tuple[float, float] = (3.4, 2.8)) -> tuple[Figure, list[Axes]]:
    """A figure with `count` panels in rows.

    Args:
        count: how many.
        columns: the most in a row.
        size: width and height of a panel in inches.
    """
    from matplotlib.figure import Figure

    columns = min(columns, count)
    rows = -(-count // columns)
    figure = Figure(figsize=(max(columns * size[0], 4.8), rows * size[1] + 0.5), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    axes = list(grid.flat)
    for spare in axes[count:]:
        spare.remove()
    return figure, axes[:count]


def legend_below(figure: Figure, axes: Axes, columns: int = 4) -> None:
    """One legend for all panels, under them."""
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside lower center", ncols=min(columns, len(handles)))


def render(figure: Figure, file_format: str, dpi: int = 150) -> bytes:
    """The figure as the content of a file, byte for byte the same for the same figure.

    Args:
        figure: drawn within `style`.
        file_format: one of `FILE_FORMATS`.
        dpi: dots per inch of a PNG.
    """
    buffer = io.BytesIO()
    figure.savefig(buffer, format=file_format, dpi=dpi, metadata=_METADATA[file_format])
    return buffer.getvalue()


def shortened(text: str, length: int = 28) -> str:
    """A name that fits a tick label."""
    return text if len(text) <= length else text[: length - 1] + "…"


def at_most(items: Sequence[Any], limit: int, what: str) -> None:
    """Refuse more panels than can be read.

    Raises:
        PlotError: there are more than `limit`.
    """
    if len(items) > limit:
        raise PlotError(
            f"{len(items)} {what} are too many for one plot (at most {limit}): choose with --trainer, --dataset"
        )
