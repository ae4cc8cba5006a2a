"""What a reader of a table must be told: missing seeds and numbers, runs that are not strictly comparable."""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from common.commandline import printable
from reporting.layouts import Column
from reporting.methods import Method
from reporting.names import shots_text
from results.schema import Run


def print_warnings(warnings: Iterable[str]) -> None:
    """Warnings on stderr, one a line; names and paths in them come from files."""
    sys.stderr.writelines(f"warning: {printable(warning)}\n" for warning in warnings)


def warnings_about(methods: Sequence[Method], blocks: Mapping[str, Sequence[Column]]) -> list[str]:
    """Every warning about a table's runs, each naming the paths it is about.

    Args:
        methods: the rows.
        blocks: the columns under each heading.
    """
    columns = [column for block in blocks.values() for column in block]
    warnings = [*_missing_seeds(methods, columns), *_missing_numbers(methods, columns)]
    for method in methods:
        warnings += _mixed_rules(method)
        warnings += _unsteady_zero_shot(method, columns)
    runs = [run for method in methods for run in method.runs]
    return [*warnings, *comparability(runs)]


def comparability(runs: Sequence[Run]) -> list[str]:
    """What keeps runs from being compared strictly: other images, other weights, a demonstration beside others."""
    return [*_mixed_splits(runs), *_mixed_weights(runs), *_demonstration_beside_others(runs)]


def _missing_seeds(methods: Sequence[Method], columns: Sequence[Column]) -> list[str]:
    warnings = []
    # columns of one data set and number of shots are fed by the same runs: say it once
    for column in {(column.dataset, column.shots): column for column in columns}.values():
        found = [(method, [run for run in method.runs if column.covers(run)]) for method in methods]
        # a method that trains nothing needs no second seed
        expected = {run.seed for method, runs in found if not method.deterministic for run in runs}
        place = str(column.dataset) if column.shots is None else f"{column.dataset}, {shots_text(column.shots)}"
        for method, runs in found:
            if not runs:
                warnings.append(f"{method.label} has no run on {place}")
            elif not method.deterministic and (missing := expected - {run.seed for run in runs}):
                warnings.append(
                    f"{method.label} on {place}: other rows have seed {_listed(missing)}, this one only "
                    f"{_listed(run.seed for run in runs)} (beside {runs[0].path.parent})"
                )
    return warnings


def _listed(seeds: Iterable[int]) -> str:
    return ", ".join(map(str, sorted(seeds)))


def _missing_numbers(methods: Sequence[Method], columns: Sequence[Column]) -> list[str]:
    lacking: dict[str, list[Run]] = defaultdict(list)
    for run in (run for method in methods for run in method.runs):
        readers = [column.metric for column in columns if column.covers(run) and column.metric.of_run]
        labels = [metric.label for metric in readers if metric.of_run(run) is None]
        if labels:
            lacking[", ".join(labels)].append(run)
    warnings = []
    for labels, runs in lacking.items():
        more = f" and {len(runs) - 1} more hold" if len(runs) > 1 else " holds"
        warnings.append(f"{runs[0].path}{more} no {labels}")
    return warnings


def _mixed_rules(method: Method) -> list[str]:
    first_with: dict[str, Run] = {}
    for run in method.runs:
        first_with.setdefault(run.selection_rule, run)
    if len(first_with) < 2:
        return []
    listed = "; ".join(f"{rule}: {run.path}" for rule, run in sorted(first_with.items()))
    return [f"{method.label} mixes selection rules ({listed})"]


def _unsteady_zero_shot(method: Method, columns: Sequence[Column]) -> list[str]:
    if not method.deterministic:
        return []
    warnings = []
    for dataset in sorted({run.dataset for run in method.runs}):
        runs = [run for run in method.runs if run.dataset == dataset]
        metrics = {column.metric.label: column.metric.of_run for column in columns if column.metric.of_run}
        differing = [label for label, read in metrics.items() if len({read(run) for run in runs}) > 1]
        if differing:
            paths = ", ".join(str(run.path) for run in runs)
            warnings.append(
                f"{method.label} trains nothing, yet {', '.join(differing)} differ on {dataset} between {paths}"
            )
    return warnings


def _mixed_splits(runs: Iterable[Run]) -> list[str]:
    """The same data set read from different split files: those numbers are about different images."""
    hashes = ((run, run.dataset, run.record["data"].get("split_sha256")) for run in runs)
    return [f"runs on {dataset} use different split files: {paths}" for dataset, paths in _differing(hashes)]


def _mixed_weights(runs: Iterable[Run]) -> list[str]:
    """Different weights under the name of one backbone."""
    hashes = ((run, run.backbone, run.record["model"].get("backbone_sha256")) for run in runs)
    return [f"runs have different weights for the backbone {name}: {paths}" for name, paths in _differing(hashes)]


def _differing(hashes: Iterable[tuple[Run, str, str | None]]) -> list[tuple[str, str]]:
    """Names that stand for several contents, with the paths of one run for each; unknown contents do not count."""
    first_with: dict[str, dict[str, Run]] = defaultdict(dict)
    for run, name, content in hashes:
        if content is not None:
            first_with[name].setdefault(content, run)
    return [
        (name, ", ".join(str(run.path) for run in by_content.values()))
        for name, by_content in first_with.items()
        if len(by_content) > 1
    ]


def _demonstration_beside_others(runs: Sequence[Run]) -> list[str]:
    first_of = {run.demonstration: run for run in reversed(runs)}
    if len(first_of) < 2:
        return []
    return [
        "the bundled demonstration model stands beside other backbones, with which it cannot be compared: "
        f"{first_of[True].path}, {first_of[False].path}"
    ]
