"""Numbers that others published, with where they stand; read from published.json.

They are shown beside measured ones and never enter an average of measured ones. Which values of a method are the
authors' own and which come from another group's runs (`rerun`) is kept apart, as is how each source was read.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import fmean

from reporting.names import canonical_dataset
from reporting.statistics import Summary, harmonic_mean, summarise

PUBLISHED_FILE = Path(__file__).with_name("published.json")
AVERAGE_KEY = "average"
# The official README states three averages that do not fit together.
BMIP_AVERAGES_NOTE = (
    "BMIP's README states base 83.47, new 76.69 and H 79.04, but the harmonic mean of 83.47 and 76.69 is 79.94. Either "
    "79.04 is a slip of the pen for 79.94, or it is the average of the data sets' own H, which is another convention. "
    "The values per data set are not public, so this cannot be settled. A slip is likelier: where others' values per "
    "data set are known, the two conventions lie 0.1 to 0.8 apart, and at most 0.4 where new accuracy is above 73; "
    "here it would be 0.9. 79.04 is shown as stated."
)
AVERAGE_H_NOTE = (
    "avg H of a published row was computed here, as the average of its data sets' H; the sources state H only."
)


@dataclass(frozen=True)
class Source:
    """Where a number stands and how it was read there."""

    title: str
    read: str
    url: str = ""
    revision: str = ""
    file: str = ""

    def __str__(self) -> str:
        """For a footnote."""
        place = " ".join(part for part in (self.url, self.file, f"({self.revision})" if self.revision else "") if part)
        return f"{self.title}{', ' + place if place else ''} ({self.read})"


@dataclass(frozen=True)
class Entry:
    """One method's published numbers from one source.

    Args:
        protocol: base_to_new, open_world, cross_dataset or domain_generalization.
        method: its name in the source; `variant` says what sets it apart from the method as published.
        trainer: its name here, None where there is no such trainer.
        values: metric -> canonical data set (or "average") -> number with its spread, where one is known.
        average_over: how many data sets "average" is over; None without one.
        rerun: whether others than the method's authors ran it.
        count: how many runs the numbers are from, where that is not the usual three seeds.
    """

    protocol: str
    method: str
    trainer: str | None
    source: Source
    confidence: str
    values: Mapping[str, Mapping[str, Summary]]
    variant: str = ""
    average_over: int | None = None
    rerun: bool = False
    note: str = ""
    count: int | None = None

    @property
    def label(self) -> str:
        """Method and variant."""
        return f"{self.method} ({self.variant})" if self.variant else self.method

    def value(self, metric: str, dataset: str) -> Summary | None:
        """The number of a metric on a data set, under any spelling of its name, or None."""
        return self.values.get(metric, {}).get(canonical_dataset(dataset))

    def average(self, metric: str) -> Summary | None:
        """The published average of a metric, or None; "average_H" is computed from every data set's base and new."""
        return self._average_of_h() if metric == "average_H" else self.values.get(metric, {}).get(AVERAGE_KEY)

    def _average_of_h(self) -> Summary | None:
        base, new = (self.values.get(metric, {}) for metric in ("base", "new"))
        known = (base.keys() & new.keys()) - {AVERAGE_KEY}
        if not known or len(known) != self.average_over:
            return None
        return Summary(fmean(harmonic_mean(base[name].mean, new[name].mean) for name in known), None, (), {})

    @property
    def footnote(self) -> str:
        """Source, and what a reader must know about these numbers."""
        confidence = "" if self.confidence == "high" else f"confidence {self.confidence}"
        return "; ".join(part for part in (str(self.source), self.note, confidence) if part)


@cache
def load_published(path: Path = PUBLISHED_FILE) -> tuple[Entry, ...]:
    """All published numbers, in the file's order."""
    content = json.loads(path.read_text(encoding="utf-8"))
    sources = {key: Source(**source) for key, source in content["sources"].items()}
    entries = [_entry(raw, sources) for raw in content["entries"]]
    return (*entries, *(_seed_study(raw, sources) for raw in content["seed_studies"]))


def _entry(raw: Mapping, sources: Mapping[str, Source]) -> Entry:
    metrics: dict[str, dict[str, Summary]] = {metric: {} for metric in raw["metrics"]}
    for dataset, numbers in raw["values"].items():
        for metric, number in zip(raw["metrics"], numbers, strict=True):
            if number is not None:
                metrics[metric][dataset] = Summary(number, None, (), {})
    kept = {key: raw[key] for key in ("variant", "average_over", "rerun", "note") if key in raw}
    given = {key: raw[key] for key in ("protocol", "method", "trainer", "confidence")}
    return Entry(**given, **kept, source=sources[raw["source"]], values=metrics)


def _seed_study(raw: Mapping, sources: Mapping[str, Source]) -> Entry:
    """Many runs of one method on one data set: their mean and spread."""
    values, count = {}, 0
    for metric, by_init in raw["values"].items():
        numbers = [number for seeds in by_init.values() for number in seeds]
        summary, count = summarise(dict(enumerate(numbers))), len(numbers)
        values[metric] = {raw["dataset"]: Summary(summary.mean, summary.std, (), {})}
    inits = len(next(iter(raw["values"].values())))
    given = {key: raw[key] for key in ("protocol", "method", "trainer", "confidence", "note")}
    variant = f"authors' logs, {inits} initialisations x {len(raw['seeds'])} seeds"
    return Entry(**given, variant=variant, source=sources[raw["source"]], values=values, count=count)
