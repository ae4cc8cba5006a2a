"""Everything about a set of runs on one page that needs nothing but a browser: tables, plots, runs, configurations."""

from __future__ import annotations

import itertools
import json
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

from reporting.drawing import PlotError, arranged
from reporting.formats import MISSING, Number, html_page
from reporting.methods import PROTOCOLS, check_protocol, dataset_order, datasets_of, shots_text, trainer_order
from reporting.plots import KINDS, draw_plot
from reporting.run_plots import FEATURES_FILE
from reporting.table import build_table, document
from results.schema import Run

OVERVIEWS = ("few_shot", "base_new", "gain", "radar", "critical_difference", "seeds")
MAX_UNFOLDED = 6  # plots of single data sets and methods
MAX_OF_KIND = {"reliability": 8, "confusion": 12, "tsne": 4}
WIDE = 500  # points; from here on a phone scrolls a plot rather than shrinking it
# What differs between the runs of one configuration, or says nothing about it.
_NO_CONFIGURATION = ("SEED", "OUTPUT_DIR", "RESUME")


class Picture(NamedTuple):
    """A drawn plot and what it is about; `overview` when it is about all runs."""

    caption: str
    svg: str
    trainers: Sequence[str]
    datasets: Sequence[str]
    overview: bool


def build_report(
    runs: Sequence[Run], target: Path, *, title: str = "Results", published: str | None = None
) -> tuple[str, list[str]]:
    """The page, and the warnings that it shows.

    Args:
        runs: of any protocols; each protocol gets tables and plots of its own.
        target: where the page will lie, for links to the runs' files.
        title: the page's heading.
        published: which published rows to show: "measured", "all", or None for none.

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
        sections.append({"name": name, "document": document(table), "pictures": pictures, "left_out": left_out})
    runs = sorted(runs, key=lambda run: (run.setting, dataset_order(run.dataset), run.shots, run.seed))
    runs.sort(key=lambda run: (run.protocol, trainer_order(run.trainer)))
    configurations: dict[str, list[Run]] = {}
    for run in runs:
        config = {key: value for key, value in run.record["config"].items() if key not in _NO_CONFIGURATION}
        text = json.dumps(config, indent=1, sort_keys=True, ensure_ascii=False)
        configurations.setdefault(text, []).append(run)
    numbers = {run.path: number for number, group in enumerate(configurations.values(), 1) for run in group}
    configured = []
    for text, group in configurations.items():
        run, seeds = group[0], ", ".join(map(str, sorted({run.seed for run in group})))
        name = f"{run.trainer}, {run.setting}, {run.dataset}, {shots_text(run.shots)}, seeds {seeds}"
        about = {"trainers": sorted({run.trainer for run in group}), "datasets": sorted({run.dataset for run in group})}
        configured.append({"title": name, "text": text, **about})
    newest = max(run.record["finished_at"] for run in runs)
    page = html_page(
        title,
        lead=f"{len(runs)} runs, {len(trainers)} trainers, {len(datasets)} data sets; the newest finished {newest}.",
        demonstration=any(run.demonstration for run in runs),
        all_trainers={name: number for number, name in enumerate(trainers)},
        all_datasets={name: number for number, name in enumerate(datasets)},
        sections=sections,
        max_unfolded=MAX_UNFOLDED,
        rows=[_row(run, target) | {"configuration": numbers[run.path]} for run in runs],
        configurations=configured,
    )
    return page, warnings


def _row(run: Run, target: Path) -> dict[str, Any]:
    """A run in the list of all runs."""
    record, environment = run.record, run.record["environment"]
    revision = environment.get("git_revision")
    code = f"{revision[:10]}{' +changes' if environment.get('git_dirty') else ''}" if revision else MISSING
    numbers = [(run.shots, "d"), (run.seed, "d")]
    numbers += [(run.accuracy(split), ".2f") for split in ("base", "new", "all")]
    numbers += [(record["model"]["trainable_parameters"], ",d"), (record["timing"].get("total"), ".0f")]
    files = {"results.json": run.path} | {name: run.path.with_name(name) for name in ("config.yaml", "log.txt")}
    links = []
    for name, file in files.items():
        if file.is_file():
            relative = Path(os.path.relpath(file.resolve(), target.resolve().parent))
            # quoted, a colon included: no folder's name can become a scheme such as javascript:
            links.append((name, quote(relative.as_posix(), safe="/")))
    return {
        "run": run,
        "numbers": [Number() if value is None else Number(f"{value:{style}}", value) for value, style in numbers],
        "facts": [environment.get("precision") or MISSING, code, record["finished_at"]],
        "links": links,
    }


def pictures_of(runs: Sequence[Run], prefix: str) -> tuple[list[Picture], list[str]]:
    """Every plot that runs of one protocol can fill, and lines about those that they cannot.

    `prefix` makes the SVGs' inner names unique in the page.
    """
    wanted = list(_wanted(runs))
    pictures: list[Picture] = []
    left_out: list[str] = []
    for kind, limit in MAX_OF_KIND.items():
        places = [place for place in wanted if place[0] == kind]
        if len(places) > limit:
            left_out.append(f"{kind}: {len(places) - limit} of {len(places)}, to keep the page small")
            wanted = [place for place in wanted if place not in places[limit:]]
    for kind, caption, subset in wanted:
        try:
            content = draw_plot(kind, subset, "svg").decode("utf-8")
        except PlotError as error:
            left_out.append(f"{kind}: {error}")
            continue
        svg = embedded(content, f"{prefix}{len(pictures)}", caption)
        trainers = list(dict.fromkeys(run.trainer for run in subset))
        pictures.append(Picture(caption, svg, trainers, datasets_of(subset), kind in OVERVIEWS))
    return pictures, list(dict.fromkeys(left_out))


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


def _wanted(runs: Sequence[Run]) -> Iterable[tuple[str, str, Sequence[Run]]]:
    """Kind, caption and runs of each plot to try."""
    protocol, methods = arranged(runs)
    for kind in OVERVIEWS:
        if (kind == "few_shot") == (protocol.columns_by == "shots"):
            caption = KINDS[kind].help
            yield kind, f"{caption[0].upper()}{caption[1:]}", runs
    for dataset in datasets_of(runs):
        yield "curves", f"{dataset}: {KINDS['curves'].help}", [run for run in runs if run.dataset == dataset]
        for method, _ in methods:
            there = [run for run in method.runs if run.dataset == dataset]
            if any(run.record["gates"] for run in there):
                yield "gates", f"{method.label} on {dataset}: {KINDS['gates'].help}", there
    for method, _ in methods:
        splits = [(run, split) for run in method.runs for split in run.record["metrics"].values()]
        with_bins = [run for run, split in splits if "calibration" in split]
        if with_bins:
            most = max(run.shots for run in with_bins)
            several = method.shots is None and not method.deterministic
            where = f"{method.label}, {shots_text(most)}" if several else method.label
            there = [run for run in method.runs if run.shots == most]
            yield "reliability", f"{where}: accuracy by confidence on each data set (reliability diagram)", there
    for (method, _), dataset in itertools.product(methods, datasets_of(runs)):
        there = [run for run in method.runs if run.dataset == dataset]
        # shots are one more thing that tells few-shot runs apart: the most shots stand for the method
        there = [run for run in there if run.shots == max(run.shots for run in there)]
        if any("confusion" in metrics for run in there for metrics in run.record["metrics"].values()):
            several = method.shots is None and not method.deterministic
            where = f"{dataset}, {shots_text(there[0].shots)}" if several else dataset
            yield "confusion", f"{method.label} on {where}: confusion matrix", there
    with_features: dict[tuple[str, str, str], Run] = {}
    for run in runs:
        if run.path.with_name(FEATURES_FILE).is_file():
            with_features.setdefault((run.trainer, run.setting, run.dataset), run)
    for run in with_features.values():
        where = f"{run.dataset}{'' if run.deterministic else f', {shots_text(run.shots)}'}, seed {run.seed}"
        yield "tsne", f"{run.trainer} on {where}: t-SNE of image and text features", [run]
