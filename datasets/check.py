"""What is there of the data sets, and what is wrong with one: folders, counts, classes, hash of the split, images.

Each finding comes with its cure. The data set is read by the class that training uses, with all its images.
"""

import contextlib
import io
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common.files import hash_file
from dassl.config import get_cfg_default
from dassl.data.datasets import DATASET_REGISTRY, Datum
from datasets.fetch import STAGING
from datasets.sources import DatasetInfo, known_datasets, readable_size
from datasets.splits import PARTS, DataRootError, find_dataset_dir, listed, near_hint, read_entries

BUNDLED_ROOT = Path(__file__).resolve().parents[1] / "assets"
HEADERS = ("name", "classes", "images", "folder", "download", "licence", "found")
DECODERS = 8


def config_of(name: str, root: str, path: str = "") -> Any:
    """A configuration for the data set with all its images; `path` is DATASET.PATH, for `folder` and `csv`.

    Of domains, the last is the target, the others are the sources.
    """
    cfg = get_cfg_default()
    cfg.DATASET.NAME, cfg.DATASET.ROOT, cfg.DATASET.NUM_SHOTS, cfg.SEED = name, root, -1, 1
    if domains := getattr(DATASET_REGISTRY.get(name), "domains", ()):
        cfg.DATASET.SOURCE_DOMAINS, cfg.DATASET.TARGET_DOMAINS = tuple(domains[:-1]), tuple(domains[-1:])
    if path and "PATH" in cfg.DATASET:
        cfg.DATASET.PATH = path
    return cfg


def overview(root: str) -> str:
    """All data sets as a table: the published ones, the bundled ones, and any that were added to this folder."""
    from tabulate import tabulate

    rows = []
    for info in known_datasets().values():
        size = "by hand" if info.by_hand else readable_size(info.download_size)
        found = presence(root, info.folder, [path for path, _ in info.folders] + ([info.split] if info.split else []))
        counts = f"{info.classes:,}", f"{info.images:,}"
        rows.append((info.name, *counts, f"{info.folder}/", size, info.licence, found))
    registered = DATASET_REGISTRY.registered_names()
    for name in registered:
        if name in known_datasets() or name != name.lower() in registered:  # Folder is also called folder
            continue
        dataset = DATASET_REGISTRY.get(name)
        folder, split = dataset.dataset_dir, getattr(dataset, "split_file", "")
        if not folder:
            rows.append((name, "", "", "yours", "", "yours", ""))
            continue
        licence, found, base = "yours", presence(root, folder, [split] if split else []), root
        made = getattr(dataset, "entries", None)  # of a data set whose images are made when it is first used
        if made or (BUNDLED_ROOT / folder).is_dir():
            licence, found, base = "see assets/ATTRIBUTION.md", "bundled (--root assets)", str(BUNDLED_ROOT)
        counts = "?", "?"
        with contextlib.suppress(OSError, ValueError):  # no split file, or one that cannot be read
            parts = made() if made else read_entries(os.path.join(base, folder, split))[0] if base else {}
            images = [row for part in parts.values() for row in part]
            counts = (f"{len({label for _, label, _ in images}):,}", f"{len(images):,}") if images else counts
        rows.append((name, *counts, f"{folder}/", "", licence, found))
    return tabulate(rows, headers=HEADERS, maxcolwidths=[None] * 5 + [32, 40])


def presence(root: str, folder: str, names: list[str]) -> str:
    """Whether a data set's folder and what it needs are under the root; "-" without a root."""
    if not root:
        return "-"
    path = os.path.join(os.path.expanduser(root), folder)
    if not os.path.isdir(path):
        return "no"
    missing = [name for name in names if not os.path.exists(os.path.join(path, name))]
    return f"without {', '.join(missing)}" if missing else "yes"


@dataclass(frozen=True)
class Finding:
    """What is wrong, what to do about it, and whether something is missing without which there is no going on."""

    problem: str
    cure: str
    missing: bool = False


@dataclass
class Report:
    """The outcome of a check of a data set: what is wrong, nothing if all is well, and what was found, as lines."""

    name: str
    findings: list[Finding] = field(default_factory=list)
    facts: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.findings

    def lines(self) -> Iterator[str]:
        """The report, for people."""
        yield f"{self.name}: {'ok' if self.ok else f'{len(self.findings)} finding(s)'}"
        yield from (f"  {fact}" for fact in self.facts)
        for finding in self.findings:
            yield f"  WRONG: {finding.problem}"
            yield f"    cure: {finding.cure}"


def check(name: str, root: str, deep: bool = False, path: str = "") -> Report:
    """Check a registered data set; `path` is DATASET.PATH, for `folder` and `csv`.

    With `deep` every image is decoded rather than one per class and part.
    """
    report, info = Report(name), known_datasets().get(name)
    dataset_class, cfg = DATASET_REGISTRY.get(name), config_of(name, root, path)
    cfg.OUTPUT_DIR = ""  # it is no run: no split is saved
    fetch = info.command(root) if info else getattr(dataset_class, "split_help", "") or "put it there"
    try:
        find = getattr(dataset_class, "find_folder", None)
        folder = find(cfg) if find else find_dataset_dir(root, dataset_class.dataset_dir)
    except DataRootError as error:
        report.findings.append(Finding(str(error), f"correct --root, or fetch it: {fetch}"))
        return report
    report.facts.append(f"folder: {folder}")
    if info:
        report.findings += check_layout(info, folder, fetch)
    if not any(finding.missing for finding in report.findings):
        check_items(report, dataset_class, cfg, fetch, deep)
    return report


def check_layout(info: DatasetInfo, folder: str, fetch: str) -> Iterator[Finding]:
    """Folders, files and numbers of entries that the data set needs."""
    by_hand = info.by_hand.format(folder=folder).replace("\n", "\n      ")
    needed = [(*row, os.path.isdir) for row in info.folders] + [
        (name, 0, os.path.isfile) for name in needed_files(info)
    ]
    for path, least, is_there in needed:
        full, kind = os.path.join(folder, path), "file" if is_there is os.path.isfile else "folder"
        if not is_there(full):
            cure = near_hint(*os.path.split(full)).strip() or (by_hand if kind == "folder" else "") or fetch
            yield Finding(f"there is no {kind} {full}", cure, missing=True)
        elif least and (entries := count_entries(full)) < least:
            yield Finding(f"{full} has {entries} entries, at least {least} are expected", refetch(full, fetch))
    if os.path.isdir(os.path.join(folder, STAGING)):
        yield Finding(f"a download did not finish: {os.path.join(folder, STAGING)}", f"take it up again: {fetch}")


def needed_files(info: DatasetInfo) -> list[str]:
    """Files that training and testing need, beside the folders of images."""
    folders = {path.partition("/")[0] for path, _ in info.folders}
    return [name for source in info.sources if not source.optional for name in source.provides if name not in folders]


def refetch(path: str, fetch: str) -> str:
    """The cure for a folder or file that is there but wrong."""
    return f"move {path} aside and fetch it anew: {fetch}"


def count_entries(folder: str) -> int:
    """Number of files and folders that are not hidden."""
    with os.scandir(folder) as entries:
        return sum(not entry.name.startswith(".") for entry in entries)


def check_items(report: Report, dataset_class: type, cfg: Any, fetch: str, deep: bool) -> None:
    """Read the data set as training does, and compare and decode what comes."""
    try:
        with contextlib.redirect_stdout(io.StringIO()) as said:
            dataset = dataset_class(cfg)
    except Exception as error:  # a data set of someone else's may raise anything, and the report is to say so
        kind = "" if isinstance(error, ValueError | OSError) else f"{type(error).__name__}: "
        report.findings.append(Finding(f"{kind}{error}", f"do as it says, or move what is wrong aside and: {fetch}"))
        return
    report.facts += said.getvalue().splitlines()
    parts = dict(zip(PARTS, (dataset.train_x, dataset.val or [], dataset.test or []), strict=True))
    if getattr(dataset, "test_only", False):
        parts = {"test": parts["test"]}
    if source := cfg.DATASET.SOURCE_DOMAINS:
        report.facts.append(
            f"domains: {', '.join(source)} (train, val), {', '.join(cfg.DATASET.TARGET_DOMAINS)} (test)"
        )
    report.facts.append(f"classes: {dataset.num_classes} ({listed(dataset.classnames, 3)})")
    report.facts.append("images: " + ", ".join(f"{len(items)} {part}" for part, items in parts.items()))
    if sha256 := getattr(dataset, "split_sha256", None):
        report.facts.append(f"split sha256: {sha256}")
    if info := known_datasets().get(report.name):
        where = os.path.join(dataset.dataset_dir, info.split or info.folders[0][0])
        cure = f"the split or the images are of another version; {refetch(where, fetch)}"
        numbers = [("classes", dataset.num_classes, info.classes)]
        for part, expected in zip(PARTS, info.counts, strict=True):
            if expected is not None and part in parts:
                numbers.append((f"{part} images", len(parts[part]), expected))
        for what, found, expected in numbers:
            if found != expected:
                report.findings.append(Finding(f"there are {found} {what}, {expected} are published", cure))
    images: dict[Any, str] = {}
    for part, items in parts.items():
        for index, item in enumerate(items):
            images.setdefault((part, index if deep else item.label), item.impath)
    paths = list(dict.fromkeys(images.values()))
    broken, scalings = decode_all(paths)
    report.facts.append(f"decoded: {len(paths) - len(broken)} of {len(paths)} images tried")
    report.facts += [f"more than 8 bits: {count} images; {scaling}" for scaling, count in scalings.items()]
    if deep:
        check_copies(report, dataset, parts)
    if broken:
        cure = f"unpack these files again, or {refetch(getattr(dataset, 'image_dir', dataset.dataset_dir), fetch)}"
        report.findings.append(Finding(f"{len(broken)} images cannot be decoded: {listed(broken)}", cure))


def check_copies(report: Report, dataset: Any, parts: dict[str, Sequence[Datum]]) -> None:
    """Validation or test images that are, byte for byte, images of an earlier part as well.

    A published split is what it is: its copies are a fact of the report; those of any other data are a finding.
    """
    for later, earlier in (("val", ("train",)), ("test", ("train", "val"))):
        size_of = {item.impath: os.path.getsize(item.impath) for item in parts.get(later, ())}
        known = {item.impath: os.path.getsize(item.impath) for part in earlier for item in parts.get(part, ())}
        sizes = set(size_of.values()) & set(known.values())  # only files of equal size are read
        original: dict[str, str] = {}
        for path in (path for path, size in known.items() if size in sizes):
            original.setdefault(hash_file(path), path)
        hashes = {path: hash_file(path) for path, size in size_of.items() if size in sizes}
        copies = [f"{path} is {original[sha256]}" for path, sha256 in hashes.items() if sha256 in original]
        if not copies:
            continue
        what = f"{len(copies)} {later} images are copies of {' or '.join(earlier)} images, byte for byte"
        what = f"{what}: {listed(copies, 3)}"
        if getattr(dataset, "is_published", bool)():
            report.facts.append(f"note: {what}; the published split has them so")
        else:
            report.findings.append(Finding(what, f"take them out of {later}: results on images seen before mislead"))


def decode_all(paths: Sequence[str]) -> tuple[list[str], Counter[str]]:
    """The images that cannot be decoded, each with the reason; and how many were scaled to 8 bits, by how."""
    from tqdm import tqdm

    from dassl.utils import UnreadableImageError, read_image

    scalings: list[str] = []

    def problem_of(path: str) -> str:
        try:
            read_image(path, say=scalings.append)
        except UnreadableImageError as error:
            ours = isinstance(error.__cause__, UnreadableImageError)
            return error.reason if ours else type(error.__cause__).__name__
        except (OSError, MemoryError) as error:
            return type(error).__name__
        return ""

    with ThreadPoolExecutor(DECODERS) as pool:
        problems = tqdm(pool.map(problem_of, paths), total=len(paths), desc="decoding", disable=None)  # on a terminal
        broken = [f"{path} ({problem})" for path, problem in zip(paths, problems, strict=True) if problem]
    return broken, Counter(sorted(scalings))
