"""What plots read from runs: methods, and a metric's value per method, data set and seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from reporting.layouts import PROTOCOLS, Metric, Protocol
from reporting.methods import Method, check_protocol, group_methods
from reporting.names import dataset_order
from reporting.plots.style import PlotError, looks, shortened
from reporting.statistics import Summary, average_over, summarise
from results.schema import Run


@dataclass(frozen=True)
class Options:
    """What a reader may choose; empty: the plot's own choice.

    Args:
        metric: key of a metric of the protocol.
        baseline: the trainer that gains are over.
        split: class split, for confusion matrices and features.
    """

    metric: str = ""
    baseline: str = ""
    split: str = ""


def arranged(runs: Sequence[Run]) -> tuple[Protocol, list[Method]]:
    """The protocol that the runs share, and its methods with names that fit a plot.

    Raises:
        ResultsError: several protocols, or two runs with nothing to tell them apart, named with their paths.
    """
    protocol = PROTOCOLS[check_protocol(runs, None)]
    methods = group_methods(runs, protocol)
    short = [shortened(method.label) for method in methods]
    # a name too long for a legend is cut, but not so that two become one
    labels = [name if short.count(name) == 1 else f"{name} {number}" for number, name in enumerate(short, 1)]
    return protocol, [replace(method, label=label) for method, label in zip(methods, labels, strict=True)]


def require_one_number_of_shots(runs: Sequence[Run], protocol: Protocol, what: str) -> None:
    """Refuse few-shot runs of several numbers of shots, which such a plot would mix.

    Raises:
        PlotError: naming the option to choose with.
    """
    shots = sorted({run.shots for run in runs if not run.deterministic})
    if protocol.columns_by == "shots" and len(shots) > 1:
        raise PlotError(f"{what} is of one number of shots: choose with --shots ({', '.join(map(str, shots))})")


def with_looks(methods: Sequence[Method]) -> list[tuple[Method, dict[str, Any]]]:
    """Each method of a picture with its colour, marker and line style."""
    return list(zip(methods, looks([method.trainer for method in methods]), strict=True))


def datasets_of(runs: Sequence[Run]) -> list[str]:
    """The data sets in the literature's order."""
    return sorted({run.dataset for run in runs}, key=dataset_order)


def chosen_metric(protocol: Protocol, key: str) -> Metric:
    """A metric that every run has a value of; by default the run's H, or the accuracy over all classes.

    Raises:
        PlotError: the protocol has no such metric.
    """
    metrics = {metric.key: metric for metric in protocol.metrics if metric.of_run is not None}
    # H of the averages is no run's number: a run has its own H
    key = "average_H" if key == "H" else key or ("average_H" if "average_H" in metrics else "all")
    if key not in metrics:
        raise PlotError(f"no metric {key!r} in {protocol.title}; choose from {', '.join(metrics)}")
    return metrics[key]


def axis_label(metric: Metric) -> str:
    """A metric on an axis."""
    names = {"average_H": "H", "all": "accuracy", "base": "base accuracy", "new": "new accuracy"}
    return f"{names.get(metric.key, metric.label)} (%)"


def summary_of(method: Method, dataset: str, metric: Metric) -> Summary | None:
    """A method's values on a data set by seed; None without any."""
    runs = [run for run in method.runs if run.dataset == dataset]
    values = {run.seed: value for run in runs if (value := metric.of_run(run)) is not None}
    return summarise(values, deterministic=method.deterministic)


def average_of(method: Method, datasets: Sequence[str], metric: Metric) -> Summary | None:
    """Average over data sets per seed; None where the method lacks one of them."""
    return average_over([summary_of(method, dataset, metric) for dataset in datasets])
