"""The plots of a report: which of them the runs can fill, drawn as SVG that stands in the page itself."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from reporting.methods import Method
from reporting.names import shots_text
from reporting.page import text
from reporting.plot import draw_plot
from reporting.plots import KINDS
from reporting.plots.data import arranged, datasets_of
from reporting.plots.style import PlotError
from reporting.plots.tsne import FEATURES_FILE
from results.schema import Run

OVERVIEWS = ("few_shot", "base_new", "gain", "radar", "seeds")
MOST_MATRICES, MOST_TSNE = 12, 4
_WIDE = 500  # points; from here on a phone scrolls a plot rather than shrinking it


@dataclass(frozen=True)
class Picture:
    """A drawn plot and what it is about; `overview` when it is about all runs."""

    caption: str
    svg: str
    trainers: tuple[str, ...]
    datasets: tuple[str, ...]
    overview: bool


def pictures_of(runs: Sequence[Run], prefix: str) -> tuple[list[Picture], list[str]]:
    """Every plot that runs of one protocol can fill, and lines about those that they cannot.

    Args:
        runs: of one protocol.
        prefix: makes the SVGs' inner names unique in the page.
    """
    pictures: list[Picture] = []
    left_out: dict[str, None] = {}  # in order, each once
    for kind, caption, subset in _wanted(runs, left_out):
        try:
            content = draw_plot(kind, subset, "svg").decode("utf-8")
        except PlotError as error:
            left_out[f"{kind}: {error}"] = None
            continue
        svg = embedded(content, f"{prefix}{len(pictures)}", caption)
        trainers = tuple(dict.fromkeys(run.trainer for run in subset))
        pictures.append(Picture(caption, svg, trainers, tuple(datasets_of(subset)), kind in OVERVIEWS))
    return pictures, list(left_out)


def embedded(svg: str, prefix: str, label: str) -> str:
    """An SVG file as part of a page: without its XML head, its inner names its own, described for screen readers."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r'(\bid=")', rf"\g<1>{prefix}-", svg)
    svg = re.sub(r'(href="#|url\(#)', rf"\g<1>{prefix}-", svg)
    # no title or creator of its own
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    head, rest = svg.split(">", 1)
    width = float(re.search(r'width="([\d.]+)pt"', head)[1])
    head = re.sub(r'\s(width|height)="[^"]*"', "", head)
    wide = ' class="wide"' if width > _WIDE else ""
    return f'{head}{wide} role="img" aria-label="{text(label)}" style="max-width:{width:.0f}pt">{rest}'.strip()


def _wanted(runs: Sequence[Run], left_out: dict[str, None]) -> Iterable[tuple[str, str, Sequence[Run]]]:
    """Kind, caption and runs of each plot to try."""
    protocol, methods = arranged(runs)
    for kind in OVERVIEWS:
        if (kind == "few_shot") == (protocol.columns_by == "shots"):
            yield kind, _sentence(KINDS[kind].HELP), runs
    for dataset in datasets_of(runs):
        subset = [run for run in runs if run.dataset == dataset]
        yield "curves", f"{dataset}: {KINDS['curves'].HELP}", subset
        for method in methods:
            own = [run for run in method.runs if run.dataset == dataset]
            if any(run.record["gates"] for run in own):
                yield "gates", f"{method.label} on {dataset}: {KINDS['gates'].HELP}", own
    yield from _matrices(methods, left_out)
    yield from _features(runs, left_out)


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:]


def _matrices(methods: Sequence[Method], left_out: dict[str, None]) -> Iterable[tuple[str, str, Sequence[Run]]]:
    places = []
    for method in methods:
        for dataset in datasets_of(method.runs):
            subset = [run for run in method.runs if run.dataset == dataset]
            # shots are one more thing that tells few-shot runs apart: the most shots stand for the method
            subset = [run for run in subset if run.shots == max(run.shots for run in subset)]
            if any("confusion" in metrics for run in subset for metrics in run.record["metrics"].values()):
                several = method.shots is None and not method.deterministic
                where = f"{dataset}, {shots_text(subset[0].shots)}" if several else dataset
                places.append(("confusion", f"{method.label} on {where}: confusion matrix", subset))
    if len(places) > MOST_MATRICES:
        left_out[f"confusion: {len(places) - MOST_MATRICES} of {len(places)}, to keep the page small"] = None
    yield from places[:MOST_MATRICES]


def _features(runs: Sequence[Run], left_out: dict[str, None]) -> Iterable[tuple[str, str, Sequence[Run]]]:
    first: dict[tuple[str, str, str], Run] = {}
    for run in runs:
        if run.path.with_name(FEATURES_FILE).is_file():
            first.setdefault((run.trainer, run.setting, run.dataset), run)
    if len(first) > MOST_TSNE:
        left_out[f"tsne: {len(first) - MOST_TSNE} of {len(first)}, to keep the page small"] = None
    for run in list(first.values())[:MOST_TSNE]:
        shots = "" if run.deterministic else f", {shots_text(run.shots)}"
        where = f"{run.dataset}{shots}, seed {run.seed}"
        yield "tsne", f"{run.trainer} on {where}: t-SNE of image and text features", [run]
