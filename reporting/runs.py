"""The results.json of a run: its schema, how it is read, and how runs are found under folders.

A results.json is the last thing a run writes, so its presence means that the run is finished.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

RESULTS_FILE = "results.json"
SCHEMA_VERSION = 1
MAX_BYTES = 64 * 2**20  # a run on ImageNet takes under 1 MiB

_TEXT, _COUNT, _TABLE = (str,), (int,), (dict,)
_NULLABLE_TABLE = (dict, type(None))
REQUIRED_KEYS: Mapping[str, tuple[type, ...]] = {
    "schema_version": _COUNT,
    "status": _TEXT,
    "protocol": _TEXT,
    "trainer": _TEXT,
    "setting": _TEXT,
    "dataset": _TEXT,
    "backbone": _TEXT,
    "seed": _COUNT,
    "init_seed": _COUNT,
    "shots": _COUNT,
    "train_classes": _TEXT,
    "selection_rule": _TEXT,
    "config": _TABLE,
    "environment": _TABLE,
    "data": _TABLE,
    "model": _TABLE,
    "metrics": _TABLE,
    "history": (list,),
    "gates": _NULLABLE_TABLE,
    "timing": _TABLE,
    "memory": _TABLE,
    "finished_at": _TEXT,
}


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
    missing = [key for key in REQUIRED_KEYS if key not in record]
    if missing:
        raise ResultsError(f"{where}: missing keys: {', '.join(missing)}")
    for key, types in REQUIRED_KEYS.items():
        if not isinstance(record[key], types) or isinstance(record[key], bool):
            expected = " or ".join("null" if kind is type(None) else kind.__name__ for kind in types)
            raise ResultsError(f"{where}: {key} should be {expected}, is {record[key]!r}")
    if record["status"] != "finished":
        raise ResultsError(f"{where}: status is {record['status']!r}: the run did not finish")
    _validate_metrics(record, where)


def _validate_metrics(record: Mapping[str, Any], where: str | Path) -> None:
    for split, metrics in record["metrics"].items():
        value = metrics.get("accuracy") if isinstance(metrics, dict) else None
        if not isinstance(value, int | float) or not math.isfinite(value):
            raise ResultsError(f"{where}: metrics.{split}.accuracy should be a number, is {value!r}")
    trainable = record["model"].get("trainable_parameters")
    if not isinstance(trainable, int):
        raise ResultsError(f"{where}: model.trainable_parameters should be a number, is {trainable!r}")


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
        return cls(path=Path(path), record=record, **given)

    @property
    def deterministic(self) -> bool:
        """Whether nothing was trained, so that no seed can change the numbers (zero-shot CLIP)."""
        return self.record["model"]["trainable_parameters"] == 0

    @property
    def demonstration(self) -> bool:
        """Whether the backbone is one of the small models that come with the repository."""
        return self.backbone.startswith("bundled:")

    @property
    def source_dataset(self) -> str | None:
        """The data set trained on, where the record tells it apart from the one tested on."""
        return self.record.get("source_dataset")

    def accuracy(self, split: str) -> float | None:
        """Accuracy in percent on a class split, None where the run did not test it."""
        metrics = self.record["metrics"].get(split)
        return None if metrics is None else float(metrics["accuracy"])

    def open_world(self, name: str) -> float | None:
        """An open-world metric of the `all` split in percent, None where the run has none."""
        value = self.record["metrics"].get("all", {}).get("open_world", {}).get(name)
        return None if value is None else float(value)


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
    return runs
