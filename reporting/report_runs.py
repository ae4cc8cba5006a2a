"""A report's list of all runs, each with its numbers and a link to its configuration."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from reporting.html_tables import Filters, sortable
from reporting.names import shots_text
from reporting.page import text
from reporting.reading import MISSING
from results.schema import Run

_HEADINGS = (
    ("Trainer", False),
    ("Setting", False),
    ("Data set", False),
    ("Protocol", False),
    ("Shots", True),
    ("Seed", True),
    ("base", True),
    ("new", True),
    ("all", True),
    ("Trained parameters", True),
    ("Seconds", True),
    ("Precision", False),
    ("Code", False),
    ("Finished", False),
    ("Configuration", False),
    ("Files", False),
)
# What differs between the runs of one configuration, or says nothing about it.
_OWN_KEYS = ("SEED", "OUTPUT_DIR", "RESUME")


def runs_html(runs: Sequence[Run], filters: Filters, target: Path) -> str:
    """The table of runs and their configurations, each distinct configuration once.

    Args:
        runs: all of the report.
        filters: the page's.
        target: where the page will lie; links to the runs' files are relative to it.
    """
    configurations: dict[str, list[Run]] = {}
    for run in runs:
        configurations.setdefault(_configuration(run), []).append(run)
    numbers = {run.path: index for index, group in enumerate(configurations.values(), 1) for run in group}
    rows = [_row(run, filters, target, numbers[run.path]) for run in runs]
    folded = [
        _folded(index, content, group, filters) for index, (content, group) in enumerate(configurations.items(), 1)
    ]
    return f"{sortable(_HEADINGS, rows, name='runs')}\n<h3>Configurations</h3>\n" + "\n".join(folded)


def _configuration(run: Run) -> str:
    config = {key: value for key, value in run.record["config"].items() if key not in _OWN_KEYS}
    return json.dumps(config, indent=1, sort_keys=True, ensure_ascii=False)


def _row(run: Run, filters: Filters, target: Path, configuration: int) -> str:
    record = run.record
    numbers = [run.shots, run.seed]
    accuracies = [run.accuracy(split) for split in ("base", "new", "all")]
    environment = record["environment"]
    revision = environment.get("git_revision")
    code = f"{str(revision)[:10]}{' +changes' if environment.get('git_dirty') else ''}" if revision else MISSING
    cells = [
        f'<th scope="row">{text(run.trainer)}</th>',
        *(f"<td>{text(value)}</td>" for value in (run.setting, run.dataset, run.protocol)),
        *(_number(value, "d") for value in numbers),
        *(_number(value, ".2f") for value in accuracies),
        _number(record["model"]["trainable_parameters"], ",d"),
        _number(record["timing"].get("total"), ".0f"),
        *(f"<td>{text(value)}</td>" for value in (environment.get("precision", MISSING), code, record["finished_at"])),
        f'<td><a href="#config-{configuration}">configuration {configuration}</a></td>',
        f"<td>{_file_links(run.path, target)}</td>",
    ]
    return f"<tr{filters.marks([run.trainer], [run.dataset])}>{''.join(cells)}</tr>"


def _number(value: Any, style: str) -> str:
    if not isinstance(value, int | float):
        return f'<td class="number" data-value="">{MISSING}</td>'
    return f'<td class="number" data-value="{value!r}">{value:{style}}</td>'


def _file_links(path: Path, target: Path) -> str:
    """Links to the run's own files, as they lie from the page."""
    links = []
    for name in ("results.json", "config.yaml", "log.txt"):
        file = path if name == "results.json" else path.with_name(name)
        if file.is_file():
            relative = os.path.relpath(file.resolve(), target.resolve().parent)
            # quoted, a colon included: no folder's name can become a scheme such as javascript:
            links.append(f'<a href="{text(quote(Path(relative).as_posix(), safe="/"))}">{text(name)}</a>')
    return " ".join(links)


def _folded(index: int, content: str, runs: Sequence[Run], filters: Filters) -> str:
    seeds = ", ".join(str(seed) for seed in sorted({run.seed for run in runs}))
    run = runs[0]
    title = f"{index}: {run.trainer}, {run.setting}, {run.dataset}, {shots_text(run.shots)}, seeds {seeds}"
    marks = filters.marks(sorted({run.trainer for run in runs}), sorted({run.dataset for run in runs}))
    return (
        f'<details class="config" id="config-{index}"{marks}><summary>{text(title)}</summary>'
        f"<pre>{text(content)}</pre></details>"
    )
