"""Numbers that others published, with where they stand; read from published.json.

They are shown as rows of their own, below the measured ones, and never enter an average of measured ones. Which values
of a method are the authors' own and which come from another group's runs (`rerun`) is kept apart, as is how each source
was read.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence, Set
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from statistics import fmean

from reporting.methods import trainer_order
from reporting.stats import Summary, harmonic_mean, summarise
from results.schema import DATASETS, canonical_dataset

AVERAGE = "average"
ELEVEN = frozenset(DATASETS[:11])  # what base-to-new and few-shot averages of the literature are over
BACKBONE, SHOTS = "ViT-B/16", 16
PUBLISHED_FILE = Path(__file__).with_name("published.json")
# The official README states three averages that do not fit together.
BMIP_AVERAGES_NOTE = (
    "BMIP's README states base 83.47, new 76.69 and H 79.04, but the harmonic mean of 83.47 and 76.69 is 79.94. Either "
    "79.04 is a slip of the pen for 79.94, or it is the average of the data sets' own H, which is another convention. "
    "The values per data set are not public, so this cannot be settled. A slip is likelier: where others' values per "
    "data set are known and fit their averages, the two conventions lie 0.1 to 0.8 apart, and at most 0.4 where new "
    "accuracy is above 73; here it would be 0.9. 79.04 is shown as stated."
)
AVERAGE_H_NOTE = (
    "avg H of a published row was computed here, as the average of its data sets' H; the sources state H only."
)
PUBLISHED_NOTE = (
    f"Rows marked published were not measured here: {BACKBONE}, {SHOTS} shots unless the column says how many, as "
    "stated by the source in brackets. They enter no average of measured numbers."
)
# What sets a published row apart from the others whatever its method is: stands in its name, and here for the legend.
MARKS = {
    "transductive": "trained on unlabelled images of the test data's domain, new classes included; others see the "
    "labelled few-shot images only.",
    "tuned per data set": "its authors chose weights or schedules for each data set; others have one setting for all.",
}


def _source(title: str, read: str, url: str = "", revision: str = "", file: str = "") -> str:
    """Where a number stands and how it was read there, for a footnote."""
    place = " ".join(filter(None, (url, file, f"({revision})" if revision else "")))
    return f"{title}{', ' + place if place else ''} ({read})"


@dataclass(frozen=True)
class Entry:
    """One method's published numbers from one source."""

    protocol: str
    method: str  # its name in the source
    trainer: str | None  # its name here, if there is such a trainer
    source: str  # where the numbers stand and how they were read there
    confidence: str
    values: Mapping[str, Mapping[str, Summary]]  # metric -> canonical data set, or "average"
    variant: str = ""  # what sets it apart from the method as published
    average_over: int | None = None  # how many data sets "average" is over
    rerun: bool = False  # whether others than the method's authors ran it
    note: str = ""
    count: int | None = None  # how many runs the numbers are from, where that is not the usual three seeds
    marks: Sequence[str] = ()  # of `MARKS`
    # "average base" or "ucf101 H" -> what it should be by the entry's other values, where that is not what it is
    contradictions: Mapping[str, float] = field(default_factory=dict)

    @property
    def label(self) -> str:
        details = "; ".join(filter(None, (self.variant, *self.marks)))
        return f"{self.method} ({details})" if details else self.method

    @property
    def footnote(self) -> str:
        """Source, and what a reader must know about these numbers."""
        confidence = "" if self.confidence == "high" else f"confidence {self.confidence}"
        contradictions = []
        for place, follows in self.contradictions.items():
            dataset, metric = place.split()
            by = "base and new" if metric == "H" else "data sets"
            stated = self.values[metric][dataset].mean
            contradictions.append(f"{place} is stated as {stated:.2f}, but its {by} give {follows:.2f}")
        return "; ".join(filter(None, (self.source, self.note, *contradictions, confidence)))

    def value(self, metric: str, dataset: str) -> Summary | None:
        """The number of a metric on a data set, under any spelling of its name, or None."""
        return self.values.get(metric, {}).get(canonical_dataset(dataset))

    def average(self, metric: str) -> Summary | None:
        """The published average of a metric, or None; "average_H" is computed from every data set's base and new."""
        if metric != "average_H":
            return self.values.get(metric, {}).get(AVERAGE)
        base, new = (self.values.get(part, {}) for part in ("base", "new"))
        known = (base.keys() & new.keys()) - {AVERAGE}
        if not known or len(known) != self.average_over:
            return None
        return Summary(fmean(harmonic_mean(base[name].mean, new[name].mean) for name in known))


@cache
def load_published() -> tuple[Entry, ...]:
    """All published numbers, in the file's order."""
    content = json.loads(PUBLISHED_FILE.read_text(encoding="utf-8"))
    sources = {key: _source(**source) for key, source in content["sources"].items()}
    entries = []
    for raw in content["entries"]:
        metrics = raw.pop("metrics")
        values: dict[str, dict[str, Summary]] = {metric: {} for metric in metrics}
        for dataset, numbers in raw["values"].items():
            for metric, number in zip(metrics, numbers, strict=True):
                if number is not None:
                    values[metric][dataset] = Summary(number)
        entries.append(Entry(**raw | {"source": sources[raw["source"]], "values": values}))
    # many runs of one method on one data set: their mean and spread
    for raw in content["seed_studies"]:
        dataset, seeds, values = raw.pop("dataset"), raw.pop("seeds"), {}
        for metric, by_init in raw["values"].items():
            numbers = [number for of_init in by_init.values() for number in of_init]
            summary = summarise(dict(enumerate(numbers)))
            values[metric] = {dataset: Summary(summary.mean, summary.std)}
            variant = f"authors' logs, {len(by_init)} initialisations x {len(seeds)} seeds"
            facts = {"source": sources[raw["source"]], "variant": variant, "count": len(numbers)}
        entries.append(Entry(**raw | facts | {"values": values}))
    return tuple(entries)


def chosen_entries(protocol: str, trainers: Collection[str], choice: str) -> list[Entry]:
    """The entries of a protocol in the methods' order.

    `choice` is "measured" for the table's trainers and BMIP as their authors published them, "all" for every entry.
    """
    # an open-world table has the base-to-new numbers too
    protocols = {protocol, "base_to_new"} if protocol == "open_world" else {protocol}
    entries = [entry for entry in load_published() if entry.protocol in protocols]
    if choice == "measured":
        wanted = {*trainers, "BMIP"}
        entries = [entry for entry in entries if not entry.rerun and (entry.trainer or entry.method) in wanted]
    return sorted(entries, key=lambda entry: trainer_order(entry.trainer or entry.method))


def averaged_datasets(entries: Sequence[Entry]) -> Set[str]:
    """The data sets that published averages are over: those of an entry that has them all."""
    for entry in entries:
        if targets := averaged(next(iter(entry.values.values())), entry.average_over):
            return targets
    return ELEVEN if any(entry.average_over == len(ELEVEN) for entry in entries) else set()


def averaged(values: Mapping[str, Summary], average_over: int | None) -> Set[str]:
    """The data sets with a value, without ImageNet where it is the source; none where the average is over others."""
    datasets = values.keys() - {AVERAGE}
    return next((names for names in (datasets, datasets - {"imagenet"}) if len(names) == average_over), set())
