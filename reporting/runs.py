"""The results.json of a run: its schema, how it is read, and how runs are found under folders.

A results.json is the last thing a run writes, so its presence means that the run is finished.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

from common.commandline import printable
from common.free_options import flatten, is_free
from reporting.schema import problem_of

RESULTS_FILE = "results.json"
SCHEMA_VERSION = 1
MAX_BYTES = 64 * 2**20  # a run on ImageNet takes under 1 MiB

# Beside common.free_options: settings that decide no number, that another key of the record says, or that the protocol
# sets.
_NO_DIFFERENCE = frozenset(
    (
        "VERSION",
        "SEED",
        "MODEL.INIT_SEED",
        "MODEL.BACKBONE.NAME",
        "TRAINER.NAME",
        "DATASET.NAME",
        "DATASET.PATH",
        "DATASET.LABEL",
        "DATASET.TEMPLATE",
        "DATASET.NUM_SHOTS",
        "DATASET.SUBSAMPLE_CLASSES",
        "DATASET.SOURCE_DOMAINS",
        "DATASET.TARGET_DOMAINS",
        "TRAIN.CHECKPOINT_ACTIVATIONS",
        "TRAIN.FROZEN_LINEAR",
        "TRAIN.DETERMINISTIC",
        "OPTIM.FUSED",
    )
)
_OF_TRAINING = ("OPTIM.", "TRAIN.", "DATALOADER.", "DATASET.VAL_PERCENT")
OWN_IMAGES = ("folder", "csv")  # data sets that older records name by the way their images are listed


class ResultsError(ValueError):
    """A results.json, or a set of them, that cannot be used as it is; the message names the path."""


def validate_results(record: Any, where: str | Path) -> None:
    """Check a results record against the schema.

    Args:
        record: what the JSON holds.
        where: the path to name in the error.

    Raises:
        ResultsError: no JSON object, another schema version, an unfinished run, keys missing or of a wrong type.
    """
    if not isinstance(record, dict):
        raise ResultsError(f"{where}: not the results of a run: expected a JSON object, got {type(record).__name__}")
    version = record.get("schema_version")
    if version is not None and version != SCHEMA_VERSION:
        raise ResultsError(f"{where}: schema_version is {version!r}, this code reads {SCHEMA_VERSION}")
    problem = problem_of(record)
    if problem:
        raise ResultsError(f"{where}: {problem}")
    if record["status"] != "finished":
        raise ResultsError(f"{where}: status is {record['status']!r}: the run did not finish")


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is no number")


def read_results(path: str | Path) -> dict[str, Any]:
    """Read and check one results.json.

    Raises:
        FileNotFoundError: there is no such file: the run is not finished, or was never started.
        ResultsError: the file is cut short or does not fit the schema.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; a run writes it last, so this run is not finished")
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise ResultsError(f"{path}: {size:,} bytes are no results of a run ({MAX_BYTES:,} at most): redo the run")
    try:
        record = json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse_constant)
    except ValueError as error:  # malformed JSON and malformed UTF-8 alike
        raise ResultsError(f"{path}: not valid JSON ({error}); cut short or damaged: redo the run") from error
    except RecursionError as error:
        raise ResultsError(f"{path}: not valid JSON (nested too deeply): redo the run") from error
    validate_results(record, path)
    return record


@dataclass(frozen=True)
class Run:
    """One finished run; the fields are those of its results.json that tell runs apart."""

    path: Path
    record: Mapping[str, Any]
    protocol: str
    trainer: str
    setting: str
    dataset: str
    backbone: str
    seed: int
    shots: int
    selection_rule: str

    @classmethod
    def read(cls, path: str | Path) -> Run:
        """Read and check the run's results.json; raises as `read_results` does."""
        record = read_results(path)
        given = {field.name: record[field.name] for field in fields(cls) if field.name not in ("path", "record")}
        given["dataset"] = _dataset_of(record)
        # what reaches a terminal, a table or a page must not be obeyed there
        given = {key: printable(value) if isinstance(value, str) else value for key, value in given.items()}
        return cls(path=Path(path), record=record, **given)

    @property
    def deterministic(self) -> bool:
        """Whether nothing was trained, so that no seed can change the numbers (zero-shot CLIP)."""
        return self.record["model"]["trainable_parameters"] == 0

    @cached_property
    def settings(self) -> dict[str, Any]:
        """The settings that decide the run's numbers, by dotted key."""
        settings = deciding_settings(self.record["config"])
        left_out = _OF_TRAINING if self.deterministic else ()
        return {key: value for key, value in settings.items() if not key.startswith(left_out)}

    @property
    def overrides(self) -> dict[str, Any]:
        """What was changed on the command line against the setting's and the data set's files, as far as recorded."""
        return {key: value for key, value in self.record.get("overrides", {}).items() if key in self.settings}

    @property
    def same_as(self) -> str:
        """What two copies of one run share: everything but where and when it ran."""
        record, data = self.record, self.record["data"]
        names = (
            *("protocol", "trainer", "setting", "source_dataset", "backbone", "seed", "init_seed", "shots"),
            *("train_classes", "selection_rule", "metrics"),
        )
        content = [self.dataset, *(record.get(name) for name in names)]
        images = [data.get("split_sha256"), data.get("fewshot_sha256"), record["model"].get("backbone_sha256")]
        return json.dumps([content, images, record["model"]["trainable_parameters"], self.settings], sort_keys=True)

    @property
    def demonstration(self) -> bool:
        """Whether the backbone is one of the small models that come with the repository."""
        return self.backbone.startswith("bundled:")

    @property
    def source_dataset(self) -> str | None:
        """The data set trained on, where the record tells it apart from the one tested on."""
        name = self.record.get("source_dataset")
        return None if name is None else printable(name)

    def accuracy(self, split: str) -> float | None:
        """Accuracy in percent on a class split, None where the run did not test it."""
        metrics = self.record["metrics"].get(split)
        return None if metrics is None else float(metrics["accuracy"])

    def open_world(self, name: str) -> float | None:
        """An open-world metric of the `all` split in percent, None where the run has none."""
        value = self.record["metrics"].get("all", {}).get("open_world", {}).get(name)
        return None if value is None else float(value)


def deciding_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that decide a run's numbers and are told nowhere else in its record, by dotted key."""
    flat = flatten(config)
    return {
        key: value
        for key, value in flat.items()
        if not (key in _NO_DIFFERENCE or key.startswith("TEST.") or is_free(key, flat))
    }


def _dataset_of(record: Mapping[str, Any]) -> str:
    """The data set's name; own images that an older record calls "folder" or "csv" are named by where they lie."""
    settings = record["config"].get("DATASET", {})
    named = settings.get("LABEL") or Path(settings.get("PATH", "").replace("\\", "/")).name
    return named if named and record["dataset"].lower() in OWN_IMAGES else record["dataset"]


def find_results(paths: Iterable[str | Path]) -> list[Path]:
    """The results.json files under folders (searched recursively) and those named directly; each once.

    Raises:
        FileNotFoundError: a path does not exist, or a folder holds no finished run.
    """
    found: dict[Path, Path] = {}
    for path in map(Path, paths):
        if not path.exists():
            raise FileNotFoundError(f"{path}: no such file or folder")
        files = sorted(path.rglob(RESULTS_FILE)) if path.is_dir() else [path]
        if not files:
            raise FileNotFoundError(f"{path}: no {RESULTS_FILE} in this folder or below it, so no finished run")
        for file in files:
            found.setdefault(file.resolve(), file)
    return list(found.values())


def load_runs(paths: Iterable[str | Path]) -> list[Run]:
    """Read all runs under the given folders and files.

    Raises:
        FileNotFoundError: see `find_results`.
        ResultsError: names every file that cannot be used, not only the first.
    """
    runs, problems = [], []
    for path in find_results(paths):
        try:
            runs.append(Run.read(path))
        except ResultsError as error:
            problems.append(str(error))
    if problems:
        raise ResultsError("\n".join(problems))
    return _each_once(runs)


def _each_once(runs: Sequence[Run]) -> list[Run]:
    """The runs without further copies of one, as two scripts leave that run the same; says so."""
    first: dict[str, Run] = {}
    copies = [(run, kept) for run in runs if (kept := first.setdefault(run.same_as, run)) is not run]
    if copies:
        run, kept = copies[0]
        more = f", and {len(copies) - 1} more" if len(copies) > 1 else ""
        print(printable(f"note: counted once: {run.path} is the same run as {kept.path}{more}"), file=sys.stderr)
    return list(first.values())
