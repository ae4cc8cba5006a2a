"""results.json, which a finished run leaves behind: what it must hold, and how it is read and checked.

A run writes it last and in one step (results/record.py), so its presence means that the run is finished. Importing this
module needs no torch, which reporting starts without.
"""

from __future__ import annotations

import json
import math
import os
import re
import reprlib
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

from common.commandline import printable
from common.free_options import flatten, is_free

RESULTS_FILE, CONFIG_FILE = "results.json", "config.yaml"
RECORD_FILES = (RESULTS_FILE, CONFIG_FILE)  # a run's, which nothing else replaces
SCHEMA_VERSION = 1
MAX_BYTES = 64 * 2**20  # a run on ImageNet takes under 1 MiB
MAX_DEPTH = 32
MAX_NUMBER = 3.5e38  # of a float32
MAX_SEED = 2**63 - 1
REPOSITORY = Path(__file__).resolve().parent.parent


class ResultsError(ValueError):
    """A results.json, or a set of them, that cannot be used as it is; the message names the path."""


# ---- The schema ----


@dataclass(frozen=True)
class Key:
    """What a key of results.json must hold; a float may be a whole number, too."""

    kind: type
    optional: bool = False  # it may be missing
    null: bool = False
    least: float = -MAX_NUMBER
    most: float = MAX_NUMBER


# All that a reader takes from a results.json: a record that fits makes no reader fail. Paths are dotted; `*` stands for
# every key of a table and every item of a list.
_PATHS_OF = {
    Key(str): "status protocol trainer setting dataset backbone train_classes selection_rule finished_at",
    Key(str, optional=True): "config.DATASET.PATH config.DATASET.LABEL config.TEST.SPLIT",
    Key(str, optional=True, null=True): "source_dataset environment.git_revision environment.precision "
    "environment.device environment.device_name data.split_sha256 data.fewshot_sha256 model.backbone_sha256",
    Key(bool, optional=True, null=True): "environment.git_dirty notes.transductive",
    Key(int): "schema_version",
    Key(int, least=-MAX_SEED - 1, most=MAX_SEED): "seed init_seed",
    Key(int, least=-1, most=10**9): "shots",
    Key(int, least=0, most=10**15): "model.trainable_parameters",
    Key(int, optional=True, least=0, most=10**9): "history.*.epoch gates.per_epoch.*.epoch config.TEST.TUNING_TRIALS",
    Key(int, least=-(10**12), most=10**12): "metrics.*.confusion.*.*",
    Key(float, least=0, most=100): "metrics.*.accuracy",
    Key(float, null=True, least=0, most=100): "metrics.*.open_world.*",
    Key(float, optional=True, null=True, least=0, most=100): "metrics.*.ood.*.* metrics.*.calibration.ece "
    "metrics.*.calibration.adaptive_ece metrics.*.calibration.mce metrics.*.calibration.scaled.ece "
    "metrics.*.calibration.scaled.adaptive_ece metrics.*.calibration.scaled.mce",
    Key(float, optional=True, null=True, least=0): "timing.total metrics.*.calibration.nll metrics.*.calibration.brier "
    "metrics.*.calibration.temperature metrics.*.calibration.scaled.nll metrics.*.calibration.scaled.brier",
    Key(float, optional=True, null=True, least=0, most=1): "metrics.*.calibration.bins.confidence.*",
    Key(int, optional=True, null=True, least=0, most=10**9): "environment.threads memory.earlier_runs",
    Key(float, optional=True, null=True, least=0, most=10**12): "timing.train timing.preparation "
    "metrics.*.image_seconds metrics.*.image_gflop memory.peak_rss_mib memory.peak_cuda_mib",
    Key(int, optional=True, least=0, most=10**12): "metrics.*.calibration.bins.count.* "
    "metrics.*.calibration.bins.correct.*",
    Key(list, optional=True): "metrics.*.calibration.bins.count metrics.*.calibration.bins.correct "
    "metrics.*.calibration.bins.confidence",
    Key(dict): "config environment data model metrics timing memory history.* gates.per_epoch.*",
    Key(dict, null=True): "gates",
    Key(dict, optional=True): "notes overrides config.DATASET metrics.*.open_world metrics.*.per_class metrics.*.ood "
    "config.TEST metrics.*.ood.* metrics.*.calibration metrics.*.calibration.scaled metrics.*.calibration.bins",
    Key(list): "history metrics.*.confusion.*",
    Key(list, optional=True, null=True): "gates.per_epoch metrics.*.confusion",
}
SCHEMA = {path: key for key, paths in _PATHS_OF.items() for path in paths.split()}
REQUIRED_KEYS = tuple(path for path, key in SCHEMA.items() if "." not in path and not key.optional)
# Further keys that must be there, as (table, ".", key); and all places that the schema knows.
_REQUIRED = [path.rpartition(".") for path, key in SCHEMA.items() if not key.optional and re.search(r"\.\w+$", path)]
_PLACES = {".".join(path.split(".")[:depth]) for path in SCHEMA for depth in range(1, path.count(".") + 2)}


def validate_results(record: Any, where: str | Path) -> None:
    """Check what a results.json holds against the schema; `where` is the path to name in the error.

    Raises:
        ResultsError: no JSON object, another schema version, an unfinished run, keys missing or of a wrong type.
    """
    if not isinstance(record, dict):
        raise ResultsError(f"{where}: not the results of a run: expected a JSON object, got {type(record).__name__}")
    version = record.get("schema_version")
    if version is not None and version != SCHEMA_VERSION:
        raise ResultsError(f"{where}: schema_version is {version!r}, this code reads {SCHEMA_VERSION}")
    if problem := _problem_of(record):
        raise ResultsError(f"{where}: {problem}")
    if record["status"] != "finished":
        raise ResultsError(f"{where}: status is {record['status']!r}: the run did not finish")


def _problem_of(record: dict[str, Any]) -> str | None:
    """The first thing that does not fit the schema, or that no format can hold; its key is named."""
    if missing := [key for key in REQUIRED_KEYS if key not in record]:
        return f"missing keys: {', '.join(missing)}"
    stack: list[tuple[str, str | None, Any, int]] = [("", "", record, 0)]
    while stack:
        place, path, value, depth = stack.pop()  # path: in the schema; None where it says nothing
        if depth > MAX_DEPTH:
            return f"{place.split('.')[0]} is nested more than {MAX_DEPTH} deep"
        if problem := _misfit(place, value, SCHEMA.get(path)):
            return problem
        for parent, _, name in _REQUIRED:
            if parent == path and not (isinstance(value, dict) and name in value):
                return _misfit(f"{place}.{name}", None, SCHEMA[f"{path}.{name}"])
        items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        for name, item in items:
            if isinstance(name, str) and not _is_text(name):
                return f"a key of {place or 'the record'} is no text: {ascii(name)[:60]}"
            known = [part for part in (f"{path}.{name}".removeprefix("."), f"{path}.*") if part in _PLACES]
            stack.append((f"{place}.{name}" if place else str(name), known[0] if known else None, item, depth + 1))
    for split, metrics in record["metrics"].items():
        matrix, names = metrics.get("confusion"), metrics.get("per_class")
        if matrix is None:
            continue
        if not matrix or {len(matrix)} != set(map(len, matrix)) or (names and len(names) != len(matrix)):
            return f"metrics.{split}.confusion should have a row and a column for each class"
    return None


def _misfit(place: str, value: Any, key: Key | None) -> str | None:
    if key is not None and not (value is None and key.null):
        kinds = (int, float) if key.kind is float else (key.kind,)
        if not isinstance(value, kinds) or (isinstance(value, bool) and key.kind is not bool):
            words = "a number" if "." in place and key.kind in (int, float) else key.kind.__name__
            return f"{place} should be {words}{' or null' if key.null else ''}, is {reprlib.repr(value)}"
        if key.kind in (int, float) and not key.least - 1e-6 <= value <= key.most + 1e-6:  # false for a NaN too
            return f"{place} should be from {key.least:,} to {key.most:,}, is {reprlib.repr(value)}"
    if isinstance(value, str) and not _is_text(value):
        return f"{place} is no text: {ascii(value)[:60]}"
    if isinstance(value, float) and not math.isfinite(value):
        return f"{place} should be a number, is {value}"
    if isinstance(value, int | float) and abs(value) > MAX_NUMBER and not place.startswith("config."):
        return f"{place} should be a number up to {MAX_NUMBER}, is {reprlib.repr(value)}"
    return None


def _is_text(text: str) -> bool:
    """Whether it can be written as UTF-8; half of a surrogate pair cannot."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


# ---- Reading ----


def read_results(path: str | Path) -> dict[str, Any]:
    """Read and check one results.json.

    Raises:
        FileNotFoundError: there is no such file: the run is not finished, or was never started.
        ResultsError: the file is cut short or does not fit the schema.
    """

    def refuse(name: str) -> float:
        raise ValueError(f"{name} is no number")

    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; a run writes it last, so this run is not finished")
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise ResultsError(f"{path}: {size:,} bytes are no results of a run ({MAX_BYTES:,} at most): redo the run")
    try:
        record = json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)
    except (ValueError, RecursionError) as error:  # malformed JSON and malformed UTF-8 alike
        what = f"{error}); cut short or damaged" if isinstance(error, ValueError) else "nested too deeply)"
        raise ResultsError(f"{path}: not valid JSON ({what}: redo the run") from error
    validate_results(record, path)
    return record


@dataclass(frozen=True)
class Run:
    """One finished run: its results.json, and what of it tells runs apart, fit to be printed."""

    path: Path
    record: Mapping[str, Any]
    protocol: str
    trainer: str
    setting: str
    dataset: str
    source_dataset: str | None  # trained on, where the record tells it apart from the one tested on
    backbone: str
    seed: int
    shots: int
    selection_rule: str

    @classmethod
    def read(cls, path: str | Path) -> Run:
        """Read and check the run's results.json; raises as `read_results` does."""
        record = read_results(path)
        given = {field.name: record.get(field.name) for field in fields(cls)[2:]}
        if given["dataset"].lower() in OWN_DATA:  # a user's images in an older record: named by where they lie
            images = record["config"].get("DATASET", {})
            place = Path(images.get("PATH", "").replace("\\", "/")).name
            given["dataset"] = images.get("LABEL") or place or given["dataset"]
        # what reaches a terminal, a table or a page must not be obeyed there
        given = {key: printable(value) if isinstance(value, str) else value for key, value in given.items()}
        return cls(path=Path(path), record=record, **given)

    @property
    def method_names(self) -> tuple[str, str]:
        """The names that its method can be chosen by."""
        return self.trainer, f"{self.trainer}/{self.setting}"

    @property
    def deterministic(self) -> bool:
        """Whether nothing was trained, so that no seed can change the numbers (zero-shot CLIP)."""
        return self.record["model"]["trainable_parameters"] == 0

    @property
    def transductive(self) -> bool:
        """Whether it was trained on unlabelled images of the classes that it is tested on, the new ones too."""
        return bool(self.record.get("notes", {}).get("transductive"))

    @cached_property
    def settings(self) -> dict[str, Any]:
        """The settings that decide the run's numbers, by dotted key."""
        left_out = ("OPTIM.", "TRAIN.", "DATALOADER.", "DATASET.VAL_PERCENT") if self.deterministic else ()
        settings = deciding_settings(self.record["config"])
        return {key: value for key, value in settings.items() if not key.startswith(left_out)}

    @property
    def overrides(self) -> dict[str, Any]:
        """What was changed on the command line against the setting's and the data set's files, as far as recorded."""
        return {key: value for key, value in self.record.get("overrides", {}).items() if key in self.settings}

    @property
    def tuning_trials(self) -> int:
        """Number of trials of which its settings were the best on validation images; 0: they were not tuned."""
        return self.record["config"].get("TEST", {}).get("TUNING_TRIALS", 0)

    @property
    def same_as(self) -> str:
        """What two copies of one run share: everything but where and when it ran."""
        record, data, model = self.record, self.record["data"], self.record["model"]
        names = "protocol trainer setting source_dataset backbone seed init_seed shots train_classes selection_rule"
        content = [self.dataset, record["metrics"], *(record.get(name) for name in names.split())]
        images = [data.get("split_sha256"), data.get("fewshot_sha256"), model.get("backbone_sha256")]
        return json.dumps([content, images, model["trainable_parameters"], self.settings], sort_keys=True)

    @property
    def demonstration(self) -> bool:
        """Whether the backbone is one of the small models that come with the repository."""
        return self.backbone.startswith("bundled:")

    def accuracy(self, split: str) -> float | None:
        """Accuracy in percent on a class split, None where the run did not test it."""
        metrics = self.record["metrics"].get(split)
        return None if metrics is None else float(metrics["accuracy"])

    def open_world(self, name: str) -> float | None:
        """An open-world metric of the `all` split in percent, None where the run has none."""
        value = self.record["metrics"].get("all", {}).get("open_world", {}).get(name)
        return None if value is None else float(value)

    def calibration(self, split: str, name: str, scaled: bool = False) -> float | None:
        """A calibration metric on a class split, at the validation set's temperature or without; None: not there."""
        found = self.record["metrics"].get(split, {}).get("calibration", {})
        value = (found.get("scaled", {}) if scaled else found).get(name)
        return None if value is None else float(value)

    def detection(self, score: str, name: str) -> float | None:
        """How well a score tells base from new images, in percent, None where the run has no such number."""
        value = self.record["metrics"].get("all", {}).get("ood", {}).get(score, {}).get(name)
        return None if value is None else float(value)

    @property
    def device(self) -> str:
        """What it ran on, for reading: "AMD EPYC, 1 thread"."""
        environment = self.record["environment"]
        name, threads = environment.get("device_name") or environment.get("device"), environment.get("threads")
        on_cpu = threads and not self.on_gpu
        count = f", {threads} thread{'s' if threads > 1 else ''}" if on_cpu else ""
        return printable(f"{name or 'a device that is not recorded'}{count}")

    @property
    def on_gpu(self) -> bool:
        """Whether it ran on a CUDA device."""
        return (self.record["environment"].get("device") or "").startswith("cuda")

    @property
    def train_seconds(self) -> float | None:
        """Seconds of training without validation and tests; 0 where nothing is trained, None where it was not here."""
        timing = self.record["timing"]
        if self.deterministic or timing.get("train") is None:
            return 0.0 if self.deterministic else None
        return float(timing["train"] + (timing.get("preparation") or 0.0))

    @property
    def ms_per_image(self) -> float | None:
        """Milliseconds of testing by image, the mean over class splits; None where features were known already."""
        seconds = self._mean_over_splits("image_seconds")
        return None if seconds is None else 1000.0 * seconds

    @property
    def gflop_per_image(self) -> float | None:
        """10^9 operations of testing an image, the mean over class splits; None where features were known already."""
        return self._mean_over_splits("image_gflop")

    def _mean_over_splits(self, key: str) -> float | None:
        values = [metrics.get(key) for metrics in self.record["metrics"].values()]
        measured = [value for value in values if value is not None]
        return sum(measured) / len(measured) if measured else None

    @property
    def peak_memory(self) -> float | None:
        """Most MiB taken: of a GPU by tensors, else of the process; None where earlier runs had part in it."""
        memory = self.record["memory"]
        if (earlier := memory.get("earlier_runs")) is None or (earlier and not self.on_gpu):
            return None
        value = memory.get("peak_cuda_mib" if self.on_gpu else "peak_rss_mib")
        return None if value is None else float(value)


def find_results(paths: Iterable[str | Path]) -> list[Path]:
    """The results.json files under folders (searched recursively) and those named directly; each once.

    Raises:
        FileNotFoundError: a path does not exist, or a folder holds no finished run.
        ResultsError: a file is none of JSON.
    """
    found: dict[Path, Path] = {}
    for path in map(Path, paths):
        if not path.exists():
            raise FileNotFoundError(f"{path}: no such file or folder")
        if path.is_file() and path.suffix.lower() != ".json":
            raise ResultsError(f"{path} is no {RESULTS_FILE}: give a run's, or a folder with runs in it")
        files = sorted(path.rglob(RESULTS_FILE)) if path.is_dir() else [path]
        if not files:
            raise FileNotFoundError(f"{path}: no {RESULTS_FILE} in this folder or below it, so no finished run")
        for file in files:
            found.setdefault(file.resolve(), file)
    return list(found.values())


def load_runs(paths: Iterable[str | Path]) -> list[Run]:
    """Read all runs under the given folders and files; of copies of a run, the first counts, and a note says so.

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
    first: dict[str, Run] = {}
    copies = [(run, kept) for run in runs if (kept := first.setdefault(run.same_as, run)) is not run]
    if copies:
        run, kept = copies[0]
        more = f", and {len(copies) - 1} more" if len(copies) > 1 else ""
        print(printable(f"note: counted once: {run.path} is the same run as {kept.path}{more}"), file=sys.stderr)
    return list(first.values())


# ---- Names and settings ----

OWN_DATA = ("folder", "csv")  # DATASET.NAME of a user's images, in any case
MAX_LABEL = 80
BUNDLED = re.compile(
    r"digits|emoji(kinds|concepts)(fluent|flat|contrast)?|miniobjects(plain|edges|textured|pixel)?"
    r"|mini(vehicles|devices|places|animals|food|sports|arrows|tuning)"
)
# The literature's data sets in its order, and how else they are written (without case and punctuation).
DATASETS = (
    *("imagenet", "caltech101", "oxford_pets", "stanford_cars", "oxford_flowers", "food101", "fgvc_aircraft", "sun397"),
    *("dtd", "eurosat", "ucf101", "imagenetv2", "imagenet_sketch", "imagenet_a", "imagenet_r"),
)
_CANONICAL = {name.replace("_", ""): name for name in DATASETS} | {
    **{"caltech": "caltech101", "pets": "oxford_pets", "oxfordiiitpet": "oxford_pets", "cars": "stanford_cars"},
    **dict.fromkeys(("flowers", "flowers102", "oxfordflowers102"), "oxford_flowers"),
    **{"food": "food101", "aircraft": "fgvc_aircraft", "sun": "sun397", "describabletextures": "dtd", "ucf": "ucf101"},
}
# Beside common.free_options: what decides no number, what another key of the record says, what the protocol sets.
_NO_DIFFERENCE = {
    *("VERSION", "SEED", "MODEL.INIT_SEED", "MODEL.BACKBONE.NAME", "TRAINER.NAME", "OPTIM.FUSED"),
    *("TRAIN.CHECKPOINT_ACTIVATIONS", "TRAIN.FROZEN_LINEAR", "TRAIN.DETERMINISTIC", "TRAIN.COMPILE"),
    *(f"DATASET.{key}" for key in ("NAME", "PATH", "LABEL", "TEMPLATE", "NUM_SHOTS", "SUBSAMPLE_CLASSES")),
    *("DATASET.SOURCE_DOMAINS", "DATASET.TARGET_DOMAINS"),
}
_OF_TESTS = ("TEST.SPLIT", "TEST.EVALUATOR")  # the keys of TEST that decide numbers and are told nowhere else


def canonical_dataset(name: str) -> str:
    """One spelling per data set: OxfordPets, oxford_pets and Pets are oxford_pets; unknown names are lower-cased."""
    return _CANONICAL.get(re.sub(r"[^a-z0-9]", "", name.lower()), name.lower())


def dataset_label(settings: Mapping[str, Any], root: str = "") -> str:
    """The data set's name in output paths, results.json and tables: letters, digits, and "._+-" within.

    Published and bundled data sets go by DATASET.NAME. A user's images, whose NAME is folder or csv, go by
    DATASET.LABEL, else by the last part of DATASET.PATH. A data set of domains has its target domains in its name
    ("PACS_sketch"), unless there is a LABEL.

    Args:
        settings: the section DATASET of a configuration, or what a data set's file has of it.
        root: the data root, where the settings do not have it; of use where DATASET.PATH is empty.

    Raises:
        ValueError: DATASET.LABEL cannot be part of a path, or is a published data set's name.
    """

    def safe(text: str) -> str:  # as one part of a path that no terminal or shell obeys
        text = "".join(character if character.isalnum() or character in "._+-" else "_" for character in text)
        return text.strip("._+-" if text.strip("._+-") else text)[:MAX_LABEL]

    def is_taken(label: str) -> bool:  # "flowers" is OxfordFlowers
        letters = re.sub(r"[^a-z]", "", label.lower())
        return canonical_dataset(label) in DATASETS or BUNDLED.fullmatch(letters) is not None

    name, label = str(settings["NAME"]), str(settings.get("LABEL") or "")
    if label and label != safe(label):
        raise ValueError(f"DATASET.LABEL is {label!r}: use letters, digits and . _ + - within, {MAX_LABEL} at most")
    if label and name.lower() in OWN_DATA and is_taken(label):
        raise ValueError(f"DATASET.LABEL is {label!r}, as tables call a published or bundled data set: take another")
    if label or name.lower() not in OWN_DATA:
        targets = "+".join(settings.get("TARGET_DOMAINS") or ())
        return label or (f"{name}_{safe(targets)}" if targets else name)
    folders = (str(settings.get("ROOT") or root), str(settings.get("PATH") or ""))
    place = os.path.abspath(os.path.join(*map(os.path.expanduser, folders)))
    label = safe(re.sub(r"\.csv$", "", os.path.basename(place), flags=re.IGNORECASE))
    return f"{name}_{label}" if is_taken(label) else label or name


def deciding_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that decide a run's numbers and are told nowhere else in its record, by dotted key."""
    flat = flatten(config)
    without = {key for key in flat if key in _NO_DIFFERENCE or is_free(key, flat)}
    without |= {key for key in flat if key.startswith("TEST.") and key not in _OF_TESTS}
    return {key: value for key, value in flat.items() if key not in without}
