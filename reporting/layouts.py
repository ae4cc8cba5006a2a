"""What each protocol's table shows: its columns and the words that explain them.

`open_world` and `base_to_new` have one block per data set with one column per metric, `few_shot` one block per data
set with one column per number of shots, `cross_dataset`, `domain_generalization` and `zero_shot` one block with one
column per data set.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

from reporting.names import dataset_order, shots_text
from reporting.statistics import harmonic_mean
from results.schema import Run

AVERAGE = "average"


@dataclass(frozen=True)
class Metric:
    """A number of a run, or the harmonic mean of two averages.

    Args:
        key: its name in csv and json.
        label: its column heading.
        of_run: reads it from a run in percent, None where the run has not got it.
        harmonic_of: instead of `of_run`, the keys of the two metrics whose averages it is the harmonic mean of.
    """

    key: str
    label: str
    of_run: Callable[[Run], float | None] | None = None
    harmonic_of: tuple[str, str] | None = None


@dataclass(frozen=True)
class Column:
    """A column of a block: which metric, of which runs (None: not restricted)."""

    key: str
    label: str
    metric: Metric
    dataset: str | None = None
    shots: int | None = None

    def covers(self, run: Run) -> bool:
        """Whether the run belongs into this column."""
        # zero-shot runs use no shots: their number stands for every number of shots
        return self.dataset in (None, run.dataset) and (self.shots in (None, run.shots) or run.deterministic)


@dataclass(frozen=True)
class Protocol:
    """A protocol's table.

    Args:
        title: in words.
        columns_by: what the columns of a block are.
        metrics: its metrics; where columns are shots or data sets there is one.
        legend: what the columns mean.
        also_reads: other protocols whose runs hold everything this table needs.
    """

    title: str
    columns_by: Literal["metric", "shots", "dataset"]
    metrics: tuple[Metric, ...]
    legend: tuple[str, ...]
    also_reads: tuple[str, ...] = ()


def _split_accuracy(split: str, run: Run) -> float | None:
    return run.accuracy(split)


def _open_world(name: str, run: Run) -> float | None:
    return run.open_world(name)


def _run_harmonic_mean(run: Run) -> float | None:
    base, new = run.accuracy("base"), run.accuracy("new")
    return None if base is None or new is None else harmonic_mean(base, new)


_ALL = Metric("all", "all", partial(_split_accuracy, "all"))
_BASE_NEW = (
    Metric("base", "base", partial(_split_accuracy, "base")),
    Metric("new", "new", partial(_split_accuracy, "new")),
    Metric("H", "H", harmonic_of=("base", "new")),
    Metric("average_H", "avg H", _run_harmonic_mean),
)
_OPEN_WORLD = (
    *_BASE_NEW,
    _ALL,
    Metric("open_H", "open-H", partial(_open_world, "open_H")),
    Metric("auroc", "AUROC", partial(_open_world, "auroc")),
    Metric("openworld_auc", "OpenworldAUC", partial(_open_world, "openworld_auc")),
)
_BASE_NEW_LEGEND = (
    "base, new: accuracy on the base (new) classes' test images among the base (new) classes; trained on base.",
    "H: harmonic mean of the average base and the average new accuracy (the literature's convention, no deviation). "
    "avg H: average of each run's own H. The two conventions differ.",
)
_OPEN_WORLD_LEGEND = (
    "all: accuracy over base and new test images with one softmax over all classes. open-H: harmonic mean of the base "
    "images' and the new images' accuracy there, average of each run's own.",
    "AUROC: base against new images by the largest base-class probability. OpenworldAUC (Hua et al., ICML 2025): the "
    "share of base-new image pairs that are ranked rightly with both images classified rightly in their own group.",
)

PROTOCOLS: Mapping[str, Protocol] = {
    "open_world": Protocol(
        "Open-world generalization", "metric", _OPEN_WORLD, (*_BASE_NEW_LEGEND, *_OPEN_WORLD_LEGEND)
    ),
    "base_to_new": Protocol(
        "Base-to-new generalization", "metric", _BASE_NEW, _BASE_NEW_LEGEND, also_reads=("open_world",)
    ),
    "few_shot": Protocol(
        "Few-shot classification", "shots", (_ALL,), ("Columns: shots per class. Accuracy over all classes.",)
    ),
    "cross_dataset": Protocol(
        "Cross-dataset transfer", "dataset", (_ALL,), ("Accuracy over all classes of each data set.",)
    ),
    "domain_generalization": Protocol(
        "Domain generalization", "dataset", (_ALL,), ("Accuracy over all classes of each data set.",)
    ),
    "zero_shot": Protocol(
        "Zero-shot classification",
        "dataset",
        (_ALL,),
        ("Accuracy over all classes of each data set, with hand-written prompts.",),
    ),
}


def blocks_of(protocol: Protocol, runs: Sequence[Run]) -> dict[str, list[Column]]:
    """The blocks of a protocol's table: title -> columns. Averages over data sets are not among them.

    Args:
        protocol: whose table.
        runs: all runs of the table; they tell which data sets and shots there are.
    """
    datasets = sorted({run.dataset for run in runs}, key=dataset_order)
    if protocol.columns_by == "dataset":
        return {protocol.title: _dataset_columns(protocol.metrics[0], runs, datasets)}
    blocks = {}
    for dataset in datasets:
        if protocol.columns_by == "metric":
            columns = [Column(metric.key, metric.label, metric, dataset) for metric in protocol.metrics]
        else:
            shots = sorted({run.shots for run in runs})
            columns = [Column(str(count), shots_text(count), protocol.metrics[0], dataset, count) for count in shots]
        blocks[dataset] = columns
    return blocks


def _dataset_columns(metric: Metric, runs: Sequence[Run], datasets: Sequence[str]) -> list[Column]:
    sources = source_datasets(runs)
    ordered = [name for name in datasets if name in sources] + [name for name in datasets if name not in sources]
    return [Column(name, f"{name} (source)" if name in sources else name, metric, name) for name in ordered]


def source_datasets(runs: Sequence[Run]) -> set[str]:
    """Data sets that were trained on, as far as the runs say so; averages over target data sets leave them out."""
    return {run.source_dataset for run in runs if run.source_dataset is not None}
