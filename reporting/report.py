"""Everything about a set of runs on one page that needs nothing but a browser: tables, plots, runs, configurations."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from reporting.blocks import document
from reporting.formats import MISSING, Number, html_page
from reporting.methods import PROTOCOLS, Method, check_protocol
from reporting.names import dataset_order, shots_text, trainer_order
from reporting.plots import FEATURES_FILE, KINDS, PlotError, arranged, datasets_of, draw_plot
from reporting.runs import Run
from reporting.table import build_table

OVERVIEWS = ("few_shot", "base_new", "gain", "radar", "seeds")
MAX_UNFOLDED, MAX_MATRICES, MAX_TSNE = 6, 12, 4
WIDE = 500  # points; from here on a phone scrolls a plot rather than shrinking it
# What differs between the runs of one configuration, or says nothing about it.
_NO_CONFIGURATION = ("SEED", "OUTPUT_DIR", "RESUME")


@dataclass(frozen=True)
class Picture:
    """A drawn plot and what it is about; `overview` when it is about all runs."""

    caption: str
    svg: str
    trainers: Sequence[str]
    datasets: Sequence[str]
    overview: bool


def build_report(
    runs: Sequence[Run], target: Path, *, title: str = "Results", published: str | None = None, digits: int = 2
) -> tuple[str, list[str]]:
    """The page, and the warnings that it shows.

    Args:
        runs: of any protocols; each protocol gets tables and plots of its own.
        target: where the page will lie, for links to the runs' files.
        title: the page's heading.
        published: which published rows to show, one of `published.CHOICES`; None for none.
        digits: decimals.

    Raises:
        ResultsError: a protocol that no table is known for, or two runs with nothing to tell them apart.
    """
    trainers = sorted({run.trainer for run in runs}, key=trainer_order)
    datasets = datasets_of(runs)
    known = [*PROTOCOLS, *sorted({run.protocol for run in runs} - PROTOCOLS.keys())]
    groups = {name: group for name in known if (group := [run for run in runs if run.protocol == name])}
    for name, group in groups.items():
        check_protocol(group, name)
    sections, warnings = [], []
    for name, group in groups.items():
        layout = "metric" if len(datasets_of(group)) > 1 else "dataset"
        table = build_table(group, name, group=layout, published=published)
        warnings += table.warnings
        pictures, left_out = pictures_of(group, f"{name}-")
        sections.append({"name": name, "document": document(table, digits), "pictures": pictures, "left_out": left_out})
    ordered = sorted(
        runs,
        key=lambda run: (
            *(run.protocol, trainer_order(run.trainer), run.setting),
            *(dataset_order(run.dataset), run.shots, run.seed),
        ),
    )
    configurations: dict[str, list[Run]] = {}
    for run in ordered:
        config = {key: value for key, value in run.record["config"].items() if key not in _NO_CONFIGURATION}
        text = json.dumps(config, indent=1, sort_keys=True, ensure_ascii=False)
        configurations.setdefault(text, []).append(run)
    numbers = {run.path: number for number, group in enumerate(configurations.values(), 1) for run in group}
    newest = max(run.record["finished_at"] for run in runs)
    page = html_page(
        title,
        marks=_Marks(trainers, datasets),
        lead=f"{len(runs)} runs, {len(trainers)} trainers, {len(datasets)} data sets; the newest finished {newest}.",
        demonstration=any(run.demonstration for run in runs),
        trainers=trainers,
        datasets=datasets,
        sections=sections,
        max_unfolded=MAX_UNFOLDED,
        rows=[_row(run, target) | {"configuration": numbers[run.path]} for run in ordered],
        configurations=[_configuration(text, group) for text, group in configurations.items()],
    )
    return page, warnings


class _Marks:
    """Attributes of an element for the page's filters, which know trainers and data sets by numbers: names may hold
    any character."""

    def __init__(self, trainers: Sequence[str], datasets: Sequence[str]) -> None:
        self.numbers = {"trainer": trainers, "dataset": datasets}

    def __call__(self, trainers: Collection[str] = (), datasets: Collection[str] = ()) -> str:
        from markupsafe import Markup

        marks = ""
        for kind, names in (("trainer", trainers), ("dataset", datasets)):
            numbers = [str(self.numbers[kind].index(name)) for name in names if name in self.numbers[kind]]
            marks += f' data-{kind}="{" ".join(numbers)}"' if numbers else ""
        return Markup(marks)


def _row(run: Run, target: Path) -> dict[str, Any]:
    """A run in the list of all runs."""
    record, environment = run.record, run.record["environment"]
    revision = environment.get("git_revision")
    code = f"{revision[:10]}{' +changes' if environment.get('git_dirty') else ''}" if revision else MISSING
    numbers = [(run.shots, "d"), (run.seed, "d")]
    numbers += [(run.accuracy(split), ".2f") for split in ("base", "new", "all")]
    numbers += [(record["model"]["trainable_parameters"], ",d"), (record["timing"].get("total"), ".0f")]
    return {
        "run": run,
        "numbers": [Number() if value is None else Number(f"{value:{style}}", value) for value, style in numbers],
        "facts": [environment.get("precision", MISSING), code, record["finished_at"]],
        "links": list(_links(run, target)),
    }


def _links(run: Run, target: Path) -> Iterable[tuple[str, str]]:
    """Links to the run's files, as they lie from the page."""
    for name in ("results.json", "config.yaml", "log.txt"):
        file = run.path if name == "results.json" else run.path.with_name(name)
        if file.is_file():
            relative = Path(os.path.relpath(file.resolve(), target.resolve().parent))
            # quoted, a colon included: no folder's name can become a scheme such as javascript:
            yield name, quote(relative.as_posix(), safe="/")


def _configuration(text: str, runs: Sequence[Run]) -> dict[str, Any]:
    seeds = ", ".join(map(str, sorted({run.seed for run in runs})))
    run = runs[0]
    return {
        "title": f"{run.trainer}, {run.setting}, {run.dataset}, {shots_text(run.shots)}, seeds {seeds}",
        "text": text,
        "trainers": sorted({run.trainer for run in runs}),
        "datasets": sorted({run.dataset for run in runs}),
    }


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
        trainers = list(dict.fromkeys(run.trainer for run in subset))
        pictures.append(Picture(caption, svg, trainers, datasets_of(subset), kind in OVERVIEWS))
    return pictures, list(left_out)


def embedded(svg: str, prefix: str, label: str) -> str:
    """An SVG file as part of a page: without its XML head, its inner names its own, described for screen readers."""
    from markupsafe import Markup, escape

    svg = svg[svg.index("<svg") :]
    svg = re.sub(r'(\bid=")', rf"\g<1>{prefix}-", svg)
    svg = re.sub(r'(href="#|url\(#)', rf"\g<1>{prefix}-", svg)
    # no title or creator of its own
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    head, rest = svg.split(">", 1)
    width = float(re.search(r'width="([\d.]+)pt"', head)[1])
    head = re.sub(r'\s(width|height)="[^"]*"', "", head)
    wide = ' class="wide"' if width > WIDE else ""
    described = f'role="img" aria-label="{escape(label)}" style="max-width:{width:.0f}pt"'
    return Markup(f"{head}{wide} {described}>{rest}".strip())


def _wanted(runs: Sequence[Run], left_out: dict[str, None]) -> Iterable[tuple[str, str, Sequence[Run]]]:
    """Kind, caption and runs of each plot to try."""
    protocol, methods = arranged(runs)
    for kind in OVERVIEWS:
        if (kind == "few_shot") == (protocol.columns_by == "shots"):
            caption = KINDS[kind].help
            yield kind, f"{caption[0].upper()}{caption[1:]}", runs
    for dataset in datasets_of(runs):
        subset = [run for run in runs if run.dataset == dataset]
        yield "curves", f"{dataset}: {KINDS['curves'].help}", subset
        for method in methods:
            there = [run for run in method.runs if run.dataset == dataset]
            if any(run.record["gates"] for run in there):
                yield "gates", f"{method.label} on {dataset}: {KINDS['gates'].help}", there
    yield from _few("confusion", list(_matrices(methods)), MAX_MATRICES, left_out)
    with_features: dict[tuple[str, str, str], Run] = {}
    for run in runs:
        if run.path.with_name(FEATURES_FILE).is_file():
            with_features.setdefault((run.trainer, run.setting, run.dataset), run)
    yield from _few("tsne", [(_tsne_caption(run), [run]) for run in with_features.values()], MAX_TSNE, left_out)


def _few(
    kind: str, places: Sequence[tuple[str, Sequence[Run]]], limit: int, left_out: dict[str, None]
) -> Iterable[tuple[str, str, Sequence[Run]]]:
    if len(places) > limit:
        left_out[f"{kind}: {len(places) - limit} of {len(places)}, to keep the page small"] = None
    for caption, runs in places[:limit]:
        yield kind, caption, runs


def _tsne_caption(run: Run) -> str:
    shots = "" if run.deterministic else f", {shots_text(run.shots)}"
    return f"{run.trainer} on {run.dataset}{shots}, seed {run.seed}: t-SNE of image and text features"


def _matrices(methods: Sequence[Method]) -> Iterable[tuple[str, Sequence[Run]]]:
    for method in methods:
        for dataset in datasets_of(method.runs):
            subset = [run for run in method.runs if run.dataset == dataset]
            # shots are one more thing that tells few-shot runs apart: the most shots stand for the method
            subset = [run for run in subset if run.shots == max(run.shots for run in subset)]
            if any("confusion" in metrics for run in subset for metrics in run.record["metrics"].values()):
                several = method.shots is None and not method.deterministic
                where = f"{dataset}, {shots_text(subset[0].shots)}" if several else dataset
                yield f"{method.label} on {where}: confusion matrix", subset
