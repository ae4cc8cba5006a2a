"""Check a data set on disk: folders, counts, classes, the split's hash, and that images can be decoded.

Each finding comes with its cure. The data set is read by the class that training uses, with all its images.
"""

import contextlib
import io
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dassl.config import get_cfg_default
from dassl.data.datasets import DATASET_REGISTRY, Datum
from datasets.download import STAGING
from datasets.fetch import hash_file
from datasets.locate import DataRootError, case_hint, find_dataset_dir, subfolders
from datasets.sources import DatasetInfo, known_datasets
from datasets.splitfile import PARTS, listed

DECODERS = 8


@dataclass(frozen=True)
class Finding:
    """What is wrong, what to do about it, and whether something is missing without which there is no going on."""

    problem: str
    cure: str
    missing: bool = False


@dataclass
class Report:
    """The outcome of a check.

    Attributes:
        name: the data set.
        findings: what is wrong; empty if all is well.
        facts: what was found, as lines.
    """

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


def check(name: str, root: str, deep: bool = False, path: str = "", progress: bool | None = None) -> Report:
    """Check a data set.

    Args:
        name: as registered.
        root: data root.
        deep: decode every image rather than one per class and part.
        path: DATASET.PATH, for data of one's own.
        progress: show a bar; None shows it on a terminal only.
    """
    report, info = Report(name), known_datasets().get(name)
    dataset_class, cfg = DATASET_REGISTRY.get(name), settings(name, root, path)
    fetch = how_to_fetch(dataset_class, info, root)
    try:
        find = getattr(dataset_class, "find_folder", None)
        folder = find(root, cfg) if find else find_dataset_dir(root, dataset_class.dataset_dir)
    except DataRootError as error:
        report.findings.append(Finding(str(error), f"correct --root, or fetch it: {fetch}"))
        return report
    report.facts.append(f"folder: {folder}")
    if info:
        report.findings += check_layout(info, folder, fetch)
    if not any(finding.missing for finding in report.findings):
        check_items(report, dataset_class, cfg, fetch, deep, progress)
    return report


def settings(name: str, root: str, path: str) -> Any:
    """A configuration for the data set with all its images."""
    cfg = get_cfg_default()
    cfg.DATASET.NAME, cfg.DATASET.ROOT, cfg.DATASET.NUM_SHOTS, cfg.SEED = name, root, -1, 1
    if path and "PATH" in cfg.DATASET:
        cfg.DATASET.PATH = path
    return cfg


def how_to_fetch(dataset_class: type, info: DatasetInfo | None, root: str) -> str:
    """The command that fetches a data set, or what else to do."""
    if info:
        return f"python -m datasets download {info.name} --root {root}"
    return getattr(dataset_class, "split_help", "") or "put it there"


def check_layout(info: DatasetInfo, folder: str, fetch: str) -> Iterator[Finding]:
    """Folders, files and numbers of entries that the data set needs."""
    for path, least in info.folders:
        full = os.path.join(folder, path)
        if not os.path.isdir(full):
            yield Finding(
                f"there is no folder {full}", nearby(folder, path) or by_hand(info, folder) or fetch, missing=True
            )
        elif (entries := count_entries(full)) < least:
            yield Finding(f"{full} has {entries} entries, at least {least} are expected", refetch(full, fetch))
    for name in needed_files(info):
        if not os.path.isfile(os.path.join(folder, name)):
            yield Finding(f"there is no file {os.path.join(folder, name)}", nearby(folder, name) or fetch, missing=True)
    if os.path.isdir(os.path.join(folder, STAGING)):
        yield Finding(f"a download did not finish: {os.path.join(folder, STAGING)}", f"take it up again: {fetch}")


def needed_files(info: DatasetInfo) -> list[str]:
    """Files that training and testing need, beside the folders of images."""
    folders = {path for path, _ in info.folders}
    return [name for source in info.sources if not source.optional for name in source.provides if name not in folders]


def nearby(folder: str, path: str) -> str:
    """The cure for a name that is one level too deep or spelt in another case; empty if it is not near."""
    parent, name = os.path.split(os.path.join(folder, path))
    for child in subfolders(parent):
        if os.path.lexists(os.path.join(parent, child, name)):
            return f"it lies one level too deep: move {os.path.join(parent, child, name)} to {parent}"
    hint = case_hint(parent, name)
    return f"spell it so.{hint}" if hint else ""


def by_hand(info: DatasetInfo, folder: str) -> str:
    """What to do where a licence forbids to fetch; empty elsewhere."""
    return info.by_hand.format(folder=folder).replace("\n", "\n      ")


def refetch(path: str, fetch: str) -> str:
    """The cure for a folder or file that is there but wrong."""
    return f"move {path} aside and fetch it anew: {fetch}"


def count_entries(folder: str) -> int:
    """Number of files and folders that are not hidden."""
    with os.scandir(folder) as entries:
        return sum(not entry.name.startswith(".") for entry in entries)


def check_items(report: Report, dataset_class: type, cfg: Any, fetch: str, deep: bool, progress: bool | None) -> None:
    """Read the data set as training does, and compare and decode what comes."""
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            dataset = dataset_class(cfg)
    except Exception as error:  # a data set of someone else's may raise anything, and the report is to say so
        kind = "" if isinstance(error, ValueError | OSError) else f"{type(error).__name__}: "
        report.findings.append(Finding(f"{kind}{error}", f"do as it says, or move what is wrong aside and: {fetch}"))
        return
    parts = parts_of(dataset)
    report.facts += describe(dataset, parts)
    if info := known_datasets().get(report.name):
        report.findings += check_counts(info, dataset, parts, fetch)
    images = [item for items in parts.values() for item in (items if deep else first_of_each_class(items))]
    paths = list(dict.fromkeys(item.impath for item in images))
    broken, scalings = decode_all(paths, progress)
    report.facts.append(f"decoded: {len(paths) - len(broken)} of {len(paths)} images tried")
    report.facts += [f"more than 8 bits: {count} images; {scaling}" for scaling, count in scalings.items()]
    if deep:
        check_copies(report, dataset, parts)
    if broken:
        cure = f"unpack these files again, or {refetch(getattr(dataset, 'image_dir', dataset.dataset_dir), fetch)}"
        report.findings.append(Finding(f"{len(broken)} images cannot be decoded: {listed(broken)}", cure))


def parts_of(dataset: Any) -> dict[str, Sequence[Datum]]:
    """The images of each part; a test set has no other."""
    parts = dict(zip(PARTS, (dataset.train_x, dataset.val or [], dataset.test or []), strict=True))
    return {"test": parts["test"]} if getattr(dataset, "test_only", False) else parts


def describe(dataset: Any, parts: dict[str, Sequence[Datum]]) -> Iterator[str]:
    """Classes, images and the hash of the split."""
    yield f"classes: {dataset.num_classes} ({listed(dataset.classnames, 3)})"
    yield "images: " + ", ".join(f"{len(items)} {part}" for part, items in parts.items())
    if sha256 := getattr(dataset, "split_sha256", None):
        yield f"split sha256: {sha256}"


def check_counts(info: DatasetInfo, dataset: Any, parts: dict[str, Sequence[Datum]], fetch: str) -> Iterator[Finding]:
    """Compare classes and images with the published numbers."""
    where = os.path.join(dataset.dataset_dir, info.split or info.folders[0][0])
    cure = f"the split or the images are of another version; {refetch(where, fetch)}"
    if dataset.num_classes != info.classes:
        yield Finding(f"there are {dataset.num_classes} classes, {info.classes} are published", cure)
    for part, expected in zip(PARTS, info.counts, strict=True):
        if expected is not None and part in parts and len(parts[part]) != expected:
            yield Finding(f"there are {len(parts[part])} {part} images, {expected} are published", cure)


def first_of_each_class(items: Sequence[Datum]) -> list[Datum]:
    """One image per label."""
    first: dict[int, Datum] = {}
    for item in items:
        first.setdefault(item.label, item)
    return list(first.values())


def check_copies(report: Report, dataset: Any, parts: dict[str, Sequence[Datum]]) -> None:
    """Validation or test images that are, byte for byte, images of an earlier part as well.

    A published split is what it is: its copies are a fact of the report; those of any other data are a finding.
    """
    for later, earlier in (("val", ("train",)), ("test", ("train", "val"))):
        known = [item.impath for part in earlier for item in parts.get(part, ())]
        copies = copies_among([item.impath for item in parts.get(later, ())], known)
        if not copies:
            continue
        pairs = listed([f"{copy} is {original}" for copy, original in copies], 3)
        what = f"{len(copies)} {later} images are copies of {' or '.join(earlier)} images, byte for byte: {pairs}"
        if getattr(dataset, "is_published", bool)():
            report.facts.append(f"note: {what}; the published split has them so")
        else:
            report.findings.append(Finding(what, f"take them out of {later}: results on images seen before mislead"))


def copies_among(paths: Sequence[str], others: Sequence[str]) -> list[tuple[str, str]]:
    """Files with the content of one of the others, each with that one; only files of equal size are read."""
    by_size: dict[int, list[str]] = {}
    for path in dict.fromkeys(others):
        by_size.setdefault(os.path.getsize(path), []).append(path)
    candidates = [path for path in dict.fromkeys(paths) if os.path.getsize(path) in by_size]
    sizes = {os.path.getsize(path) for path in candidates}
    original: dict[str, str] = {}
    for path in (path for size in sizes for path in by_size[size]):
        original.setdefault(hash_file(Path(path)), path)
    found = ((path, original.get(hash_file(Path(path)))) for path in candidates)
    return [(path, other) for path, other in found if other is not None]


def decode_all(paths: Sequence[str], progress: bool | None) -> tuple[list[str], Counter[str]]:
    """The images that cannot be decoded, each with the reason; and how many were scaled to 8 bits, by how."""
    from tqdm import tqdm

    with ThreadPoolExecutor(DECODERS) as pool:
        outcomes: Iterable[tuple[str, str]] = tqdm(
            pool.map(decode, paths),
            total=len(paths),
            desc="decoding",
            disable=None if progress is None else not progress,
        )
        done = list(zip(paths, outcomes, strict=True))
    broken = [f"{path} ({reason})" for path, (reason, _) in done if reason]
    return broken, Counter(scaling for _, (_, scaling) in done if scaling)


def decode(path: str) -> tuple[str, str]:
    """Why an image cannot be decoded, and how it was scaled to 8 bits; both empty for most images."""
    from dassl.utils import UnreadableImageError, read_image

    said: list[str] = []
    try:
        read_image(path, say=said.append)
    except UnreadableImageError as error:
        ours = isinstance(error.__cause__, UnreadableImageError)
        return error.reason if ours else type(error.__cause__).__name__, ""
    except (OSError, MemoryError) as error:
        return type(error).__name__, ""
    return "", "".join(said)
