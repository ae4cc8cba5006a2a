"""Groups runs into methods, the rows of a table, and refuses runs that cannot stand in one table."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from common.commandline import printable
from reporting.layouts import PROTOCOLS, Protocol
from reporting.names import shots_text, trainer_order
from results.schema import ResultsError, Run

_NAMED_PER_PROTOCOL = 3
_LONGEST = 60


@dataclass(frozen=True)
class Method:
    """A row: the runs that differ in data set and seed only (and, in few-shot tables, in shots)."""

    label: str
    trainer: str
    setting: str
    backbone: str
    shots: int | None
    runs: tuple[Run, ...]

    @property
    def deterministic(self) -> bool:
        """Whether no run trained anything."""
        return all(run.deterministic for run in self.runs)

    @property
    def selection_rule(self) -> str:
        """The rule that chose the deployed weights, or several of them."""
        return " / ".join(sorted({run.selection_rule for run in self.runs}))


def check_protocol(runs: Sequence[Run], name: str | None) -> str:
    """The protocol of the table: the given one, or the one that all runs share.

    Raises:
        ResultsError: unknown name, or runs of other protocols among them, named with their paths.
    """
    by_protocol: dict[str, list[Run]] = defaultdict(list)
    for run in runs:
        by_protocol[run.protocol].append(run)
    if name is None and len(by_protocol) > 1:
        raise ResultsError(
            "runs of several protocols cannot share a table or plot: choose with --protocol "
            f"({', '.join(sorted(by_protocol))})\n" + _listing(by_protocol)
        )
    name = name or next(iter(by_protocol))
    if name not in PROTOCOLS:
        found = "\n" + _listing({name: by_protocol[name]}) if name in by_protocol else ""
        raise ResultsError(f"no table for protocol {name!r}; known: {', '.join(PROTOCOLS)}{found}")
    accepted = (name, *PROTOCOLS[name].also_reads)
    others = {protocol: group for protocol, group in by_protocol.items() if protocol not in accepted}
    if others:
        raise ResultsError(f"runs of other protocols cannot stand in a {name} table:\n" + _listing(others))
    return name


def _listing(by_protocol: dict[str, list[Run]]) -> str:
    lines = []
    for protocol, runs in sorted(by_protocol.items()):
        lines += [f"  {protocol}: {run.path}" for run in runs[:_NAMED_PER_PROTOCOL]]
        if len(runs) > _NAMED_PER_PROTOCOL:
            lines.append(f"  {protocol}: and {len(runs) - _NAMED_PER_PROTOCOL} more")
    return "\n".join(lines)


def group_methods(runs: Sequence[Run], protocol: Protocol) -> list[Method]:
    """The table's rows in order: runs whose settings differ in one column are different rows.

    Raises:
        ResultsError: two runs with nothing to tell them apart, named with their paths.
    """
    groups: dict[tuple[str, str, str, int | None], list[Run]] = defaultdict(list)
    for run in runs:
        # zero-shot runs use no shots, whatever their configuration says
        shots = None if protocol.columns_by == "shots" or run.deterministic else run.shots
        groups[(run.trainer, run.setting, run.backbone, shots)].append(run)
    keys = sorted(groups, key=lambda key: (trainer_order(key[0]), key[1], key[2], key[3] or 0))
    trained = [key for key in keys if not all(run.deterministic for run in groups[key])]
    several_backbones = len({key[2] for key in keys}) > 1
    several_shots = len({key[3] for key in trained}) > 1
    methods = []
    for key in keys:
        trainer, setting, backbone, shots = key
        details = [setting] if len({other[1] for other in keys if other[0] == trainer}) > 1 else []
        details += [backbone] if several_backbones else []
        details += [shots_text(shots)] if several_shots and key in trained else []
        for changes, same in by_settings(groups[key]):
            named = ", ".join([*details, *changes])
            label = f"{trainer} ({named})" if named else trainer
            methods.append(Method(label, trainer, setting, backbone, shots, tuple(same)))
    _refuse_duplicates(method.runs for method in methods)
    return methods


def by_settings(runs: Sequence[Run]) -> list[tuple[list[str], list[Run]]]:
    """Runs apart by the settings in which those of one column differ, each part with these settings in words."""
    keys = sorted(
        set.union(*(_differing([run for run in runs if _place(run) == place]) for place in map(_place, runs)))
    )
    parts: dict[tuple[str, ...], list[Run]] = defaultdict(list)
    for run in runs:
        parts[tuple(f"{key} {run.settings.get(key)}" for key in keys)].append(run)
    words = [[printable(text)[:_LONGEST] for text in changes] for changes in parts]
    # long values may begin alike: a number keeps two rows from having one name
    named = [[*text, f"no. {number}"] if words.count(text) > 1 else text for number, text in enumerate(words, 1)]
    return sorted(zip(named, parts.values(), strict=True), key=lambda part: part[0])


def differing_between_columns(method: Method) -> set[str]:
    """Settings that a row's columns do not share."""
    return _differing(method.runs)


def _place(run: Run) -> tuple[str, int]:
    return run.dataset, run.shots


def _differing(runs: Sequence[Run]) -> set[str]:
    """Settings that decide the numbers and that some runs have otherwise.

    A key that one of the runs does not know is none: another version of the code wrote it.
    """
    known = set.intersection(*(set(run.settings) for run in runs))
    return {key for key in known if any(run.settings[key] != runs[0].settings[key] for run in runs)}


def _refuse_duplicates(groups: Iterable[Sequence[Run]]) -> None:
    pairs = []
    for runs in groups:
        seen: dict[tuple[str, int, int], Run] = {}
        for run in runs:
            first = seen.setdefault((run.dataset, run.shots, run.seed), run)
            if first is not run:
                pairs.append((first, run))
    if pairs:
        first, run = pairs[0]
        more = f" (and {len(pairs) - 1} more such pairs)" if len(pairs) > 1 else ""
        raise ResultsError(
            f"two runs of {run.trainer} ({run.setting}) on {run.dataset}, {shots_text(run.shots)}, seed {run.seed} "
            f"have different numbers: {first.path} and {run.path}{more}\n"
            "keep one of each, name the folder of one experiment only, or give them different settings"
        )
