"""Which of the runs a command is about: choices by trainer, data set, shots and seed."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from reporting.layouts import PROTOCOLS
from reporting.names import canonical_dataset, shots_text
from results.schema import ResultsError, Run, load_runs


def add_selection(parser: argparse.ArgumentParser) -> None:
    """Declare --protocol, and --trainer, --dataset, --shots and --seed, each of which may come several times."""
    parser.add_argument("--protocol", choices=sorted(PROTOCOLS), help="only runs of this protocol")
    parser.add_argument(
        "--trainer", action="append", default=[], metavar="NAME", help="only this trainer, or trainer/setting"
    )
    parser.add_argument("--dataset", action="append", default=[], metavar="NAME", help="only this data set")
    parser.add_argument("--shots", action="append", default=[], type=int, metavar="N", help="only this number of shots")
    parser.add_argument("--seed", action="append", default=[], type=int, metavar="N", help="only this seed")


def selected_runs(arguments: argparse.Namespace) -> list[Run]:
    """The runs that a command line names and chooses; raises as `load_runs` and `selected` do."""
    runs = load_runs(arguments.runs)
    return selected(
        runs, arguments.trainer, arguments.dataset, arguments.seed, arguments.shots, protocol=arguments.protocol
    )


def selected(
    runs: Sequence[Run],
    trainers: Sequence[str],
    datasets: Sequence[str],
    seeds: Sequence[int],
    shots: Sequence[int] = (),
    protocol: str | None = None,
) -> list[Run]:
    """The runs that fit every choice; no choice fits all.

    Raises:
        ResultsError: a choice fits no run at all, or all together fit none.
    """
    runs = of_protocol(runs, protocol)
    for count in shots:
        if not any(run.shots == count for run in runs):
            there = ", ".join(map(str, sorted({run.shots for run in runs})))
            raise ResultsError(f"no run with {shots_text(count)}; there are: {there}")
    wanted = {canonical_dataset(name) for name in datasets}
    for trainer in trainers:
        if not any(trainer in names_of(run) for run in runs):
            raise ResultsError(f"no run of trainer {trainer!r}; there are: {_listed(run.trainer for run in runs)}")
    for name in datasets:
        if not any(canonical_dataset(run.dataset) == canonical_dataset(name) for run in runs):
            raise ResultsError(f"no run on data set {name!r}; there are: {_listed(run.dataset for run in runs)}")
    kept = [
        run
        for run in runs
        if (not trainers or set(names_of(run)) & set(trainers))
        and (not wanted or canonical_dataset(run.dataset) in wanted)
        and (not seeds or run.seed in seeds)
        # zero-shot runs use no shots: they stand beside any number
        and (not shots or run.shots in shots or run.deterministic)
    ]
    if not kept:
        raise ResultsError("no run fits --trainer, --dataset and --seed (and --shots) together")
    return kept


def of_protocol(runs: Sequence[Run], name: str | None) -> Sequence[Run]:
    """The runs of a protocol, or where there is none, of another one that holds all its numbers; all for None.

    Raises:
        ResultsError: there is none.
    """
    if name is None:
        return runs
    for accepted in (name, *PROTOCOLS[name].also_reads):
        if kept := [run for run in runs if run.protocol == accepted]:
            return kept
    raise ResultsError(f"no run of protocol {name}; there are: {_listed(run.protocol for run in runs)}")


def names_of(run: Run) -> tuple[str, str]:
    """The two names that a run's method can be chosen by."""
    return run.trainer, f"{run.trainer}/{run.setting}"


def _listed(names: Sequence[str]) -> str:
    return ", ".join(sorted(set(names)))
