"""Is the set-up right? Zero-shot CLIP is deterministic, so its accuracies should be the published ones.

Where one is not, what a run recorded of its weights, split, images and settings says where to look first.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from common.commandline import printable
from common.free_options import flatten
from reporting.formats import Document, Grid, Line, Number
from reporting.methods import dataset_order
from reporting.published import BACKBONE, Entry, load_published
from results.schema import REPOSITORY, ResultsError, Run, canonical_dataset

TRAINER = "ZeroshotCLIP"
SPLITS = ("base", "new", "all")
# Half precision, Pillow's and torchvision's versions and a GPU's kernels move single images; a wrong template, split or
# resizing moves whole points.
TOLERANCE = 0.3
TOLERANCE_ROUNDED = 0.5  # of sources that state one decimal
# What the published numbers were computed with, by configuration key.
EXPECTED = {
    "TRAINER.ZEROSHOTCLIP.TEMPLATE": "",
    "TRAINER.ZEROSHOTCLIP.SENTENCES": "",
    "DATASET.TEMPLATE": "",
    "INPUT.SIZE": [224, 224],
    "INPUT.INTERPOLATION": "bicubic",
    "INPUT.PIXEL_MEAN": [0.48145466, 0.4578275, 0.40821073],
    "INPUT.PIXEL_STD": [0.26862954, 0.26130258, 0.27577711],
    "INPUT.NO_TRANSFORM": False,
    "INPUT.JPEG_DRAFT": 0.0,
    "INPUT.EXIF_ORIENTATION": False,
}


@dataclass(frozen=True)
class Compared:
    """A run's accuracy on a class split beside the published one, in percent."""

    run: Run
    split: str
    here: float
    published: float
    source: Entry

    @property
    def tolerance(self) -> float:
        """How far the two may lie apart."""
        values = [number.mean for of_metric in self.source.values.values() for number in of_metric.values()]
        return TOLERANCE_ROUNDED if all(round(value, 1) == value for value in values) else TOLERANCE

    @property
    def agrees(self) -> bool:
        return abs(self.here - self.published) <= self.tolerance


def compared(runs: Sequence[Run]) -> list[Compared]:
    """Every accuracy of zero-shot CLIP that has a published one, but a demonstration's; the first source counts."""
    found = []
    entries = [entry for entry in load_published() if entry.trainer == TRAINER and not entry.rerun]
    for run in sorted(runs, key=lambda run: (dataset_order(run.dataset), str(run.path))):
        for split in SPLITS:
            here = run.accuracy(split) if run.trainer == TRAINER and not run.demonstration else None
            known = [(value, entry) for entry in entries if (value := entry.value(split, run.dataset))]
            if here is not None and known:
                found.append(Compared(run, split, here, known[0][0].mean, known[0][1]))
    return found


@cache
def _published_data() -> dict[str, dict[str, Any]]:
    """The table of data sets, by canonical name: counts, and the checksum of the split file where it is known."""
    path = REPOSITORY / "datasets" / "sources.json"
    rows = json.loads(path.read_text(encoding="utf-8"))["datasets"]
    return {canonical_dataset(row["name"]): row for row in rows}


def suspects(run: Run) -> Iterator[str]:
    """What a run recorded of its data and settings that is not as published, the likeliest cause first."""
    data, everything = run.record["data"], run.record["metrics"].get("all", {})
    row = _published_data().get(canonical_dataset(run.dataset))
    if row:
        mirrors = [mirror for source in row.get("sources", ()) if source.get("split") for mirror in source["mirrors"]]
        known = [mirror["sha256"] for mirror in mirrors if isinstance(mirror, dict) and "sha256" in mirror]
        if known and data.get("split_sha256") not in known:
            yield (
                f"its split file has the SHA-256 {printable(str(data.get('split_sha256')))}, the known published copy "
                f"{known[0]}: move yours aside and fetch that (python -m datasets download {row['name']} --root DATA)"
            )
        facts = (("num_images", "test images", row["counts"][2]), ("num_classes", "classes", row["classes"]))
        for key, words, published in facts:
            if published is not None and everything.get(key, published) != published:
                yield (
                    f"it has {everything[key]!r} {words}, {published} are published: the split or the folders are of "
                    "another version"
                )
    config = flatten(run.record["config"])
    for key, expected in EXPECTED.items():
        value = config.get(key, expected)
        if value != expected:
            yield f"{key} is {value!r}, and {expected!r} in the published set-up"


def verified(runs: Sequence[Run]) -> tuple[Document, bool]:
    """The comparison as a document, and whether every number agrees.

    Raises:
        ResultsError: there is nothing to compare.
    """
    rows = compared(runs)
    if not rows:
        raise ResultsError(
            f"no run of {TRAINER} with {BACKBONE} on a data set that has a published number: scripts/verify_setup.sh "
            "--data DATA makes them"
        )
    lines, records = [], [["dataset", "classes", "here", "published", "difference", "tolerance", "agrees", "source"]]
    for row in rows:
        difference = row.here - row.published
        shown = (f"{row.here:.2f}", f"{row.published:g}", f"{difference:+.2f}", f"{row.tolerance:g}")
        verdict = Number("yes" if row.agrees else "NO")
        lines.append(Line([row.run.dataset, row.split], [*map(Number, shown), verdict], TRAINER))
        facts = [row.run.dataset, row.split, row.here, row.published, difference, row.tolerance, row.agrees]
        records.append([*facts, row.source.footnote])
    agree = all(row.agrees for row in rows)
    count = sum(row.agrees for row in rows)
    lead = [f"{count} of {len(rows)} accuracies of zero-shot CLIP {BACKBONE} agree with the published ones."]
    lead += [] if agree else ["Look first, in this order, at:", *_causes(rows)]
    notes = [f"{row.source.protocol}: {row.source.footnote}." for row in rows]
    title = "Zero-shot CLIP beside published numbers"
    grid = Grid(title, ["data set", "classes", "here", "published", "difference", "tolerance", "agrees"], 2, lines)
    content = {"rows": [dict(zip(records[0], record, strict=True)) for record in records[1:]], "agrees": agree}
    warnings = [
        f"{printable(run.dataset)} has no published zero-shot number"
        for run in runs
        if run.trainer == TRAINER and not run.demonstration and run.dataset not in {row.run.dataset for row in rows}
    ]
    notes, warnings = list(dict.fromkeys(notes)), list(dict.fromkeys(warnings))
    return Document(title, [grid], notes, warnings, records, content, lead=lead), agree


def _causes(rows: Sequence[Compared]) -> Iterator[str]:
    """Where to look: at what the data sets share if most differ, then at each that differs."""
    runs = {row.run.path: row.run for row in rows}
    differing = {row.run.path: row.run for row in rows if not row.agrees}
    for backbone in sorted({run.backbone for run in differing.values()} - {BACKBONE}):
        yield (
            f"weights: {backbone} was read; the published numbers are of OpenAI's {BACKBONE}, whose SHA-256 is checked "
            f"when MODEL.BACKBONE.NAME is {BACKBONE}"
        )
    weights = {str(run.record["model"].get("backbone_sha256")) for run in runs.values()}
    if len(weights) > 1:
        yield f"weights: the runs read different ones (SHA-256 of the tensors: {', '.join(sorted(weights))})"
    elif len(differing) > 1 and 2 * len(differing) > len(runs):
        precisions = {run.record["environment"].get("precision") for run in runs.values()} - {None}
        yield (
            f"what the data sets share, as {len(differing)} of {len(runs)} differ: weights (SHA-256 of the tensors "
            f"{weights.pop()}), precision ({', '.join(sorted(precisions)) or 'not recorded'}; try "
            "TRAINER.ZEROSHOTCLIP.PREC fp32), device, INPUT settings, and a root whose images are all resized copies"
        )
    for path, run in differing.items():
        found = list(suspects(run))
        splits = {row.split: row.agrees for row in rows if row.run.path == path}
        if not found and splits.get("base") and splits.get("new"):
            found = [
                "base and new agree and only all does not, so weights, images and class names are right; the source of "
                "all is another one (see below), maybe with other templates"
            ]
        elif not found:
            found = [
                "split, counts and settings are as published; so the images: resized, re-encoded or damaged copies "
                f"(python -m datasets check {printable(run.dataset)} --root DATA --deep), or the class names "
                "(classnames.txt or variants.txt of another version)"
            ]
        yield from (f"{printable(run.dataset)}: {cause}" for cause in found)
