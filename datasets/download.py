"""Download a data set into CoOp's layout: fetch, verify, unpack aside, and move into place as the last step.

Everything unfinished lies in `.download` in the data set's folder. What is in the folder already is never touched: a
source whose names all exist is skipped, and of others only what is missing is added.
"""

import contextlib
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from datasets.fetch import DownloadError, FetchOptions, fetch, progress_bar
from datasets.locate import DataRootError, case_hint, subfolders, suggest_root
from datasets.sources import DatasetInfo, Mirror, Source, readable_size
from datasets.splitfile import PARTS, check_classes, parse_entries
from datasets.unpack import ArchiveError, Limits, describe_start, is_archive, unpack

STAGING = ".download"
UNPACKED = ".unpacked"


class LayoutError(ValueError):
    """An archive that does not hold what it should."""


class WrongContentError(ValueError):
    """A file that is not of the kind it should be."""


@dataclass(frozen=True)
class DownloadOptions:
    """How to download.

    Attributes:
        fetch: how patiently.
        limits: how much may come out of an archive.
        bundle: fetch the bundle at once rather than the sources.
        say: where lines for the user go.
    """

    fetch: FetchOptions = field(default_factory=FetchOptions)
    limits: Limits = field(default_factory=Limits)
    bundle: bool = False
    say: Callable[[str], None] = print


@dataclass(frozen=True)
class Step:
    """A source that is needed, and the names that it should add."""

    source: Source
    missing: tuple[str, ...]


def download(info: DatasetInfo, root: str, options: DownloadOptions) -> bool:
    """Fetch what is missing of a data set.

    Returns:
        Whether everything that training and testing need is there now.

    Raises:
        DataRootError: the data set's folder is one level off.
        OSError: the disk is full or cannot be written to, or another process is downloading the same.
    """
    folder = dataset_folder(root, info)
    created = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    with staging(folder) as aside:
        failures = Job(info, folder, aside, folder.parent, options).run()
    if created:
        with contextlib.suppress(OSError):  # nothing came
            folder.rmdir()
    for step, error in failures:
        purpose = f" (only needed for {step.source.optional})" if step.source.optional else ""
        options.say(f"{info.name}: {step.source.file} is missing{purpose}. {error}\n  By hand: {by_hand(step, folder)}")
    unfetched = missing_images(info, folder)
    if info.by_hand and unfetched:
        options.say(info.by_hand.format(folder=folder))
    complete = not unfetched and all(step.source.optional for step, _ in failures)
    if complete:
        options.say(
            f"{info.name} is in {folder}. Check it: python -m datasets check {info.name} --root {folder.parent}"
        )
    return complete


def by_hand(step: Step, folder: Path) -> str:
    """What to do in a browser for a file that could not be fetched."""
    pages = " or ".join(mirror.page for mirror in step.source.mirrors if mirror.scheme != "root")
    if step.source.archive:
        return f"download {pages} and unpack it so that {folder} has {', '.join(step.missing)}"
    return f"save {pages} as {folder / step.source.provides[0]}"


def describe_plan(info: DatasetInfo, root: str) -> list[str]:
    """What `download` would do, in lines; nothing is written."""
    folder = dataset_folder(root, info)
    steps = plan(info, folder)
    lines = [f"{info.name} -> {folder} (licence: {info.licence})"]
    for source in info.sources:
        step = next((step for step in steps if step.source is source), None)
        if step is None:
            lines.append(f"  {source.file}: there already ({', '.join(source.provides)})")
            continue
        purpose = f", needed for {source.optional}" if source.optional else ""
        lines.append(f"  {source.file}: {readable_size(source.size)}{purpose}; adds {', '.join(step.missing)}")
        lines += [f"    {describe_mirror(mirror, source)}" for mirror in source.mirrors]
    if info.bundle and steps:
        lines.append(f"  {info.bundle.file}: {readable_size(info.bundle.size)}, if an image archive cannot be had")
        lines += [f"    {describe_mirror(mirror, info.bundle)}" for mirror in info.bundle.mirrors]
    if info.by_hand and missing_images(info, folder):
        lines.append(info.by_hand.format(folder=folder))
    return lines


def describe_mirror(mirror: Mirror, source: Source) -> str:
    """Address of a mirror and how what comes from it is verified."""
    if mirror.verified:
        return f"{mirror.page} ({f'sha256 {mirror.sha256}' if mirror.sha256 else f'md5 {mirror.md5}'})"
    return f"{mirror.page} ({'verified by its classes and counts' if source.split else 'not verified'})"


def plan(info: DatasetInfo, folder: Path) -> list[Step]:
    """The sources of which something is missing."""
    steps = [
        Step(source, tuple(name for name in source.provides if not os.path.lexists(folder / name)))
        for source in info.sources
    ]
    return [step for step in steps if step.missing]


def missing_images(info: DatasetInfo, folder: Path) -> list[str]:
    """The folders of images that are not there."""
    return [name for name, _ in info.folders if not (folder / name).is_dir()]


def dataset_folder(root: str, info: DatasetInfo) -> Path:
    """Where the data set goes.

    Raises:
        DataRootError: it exists near by, so that the root is probably meant to be another.
    """
    base = Path(os.path.abspath(os.path.expanduser(root)))
    folder = base / info.folder
    if folder.is_dir():
        return folder
    near = [base.parent, *(base / child for child in subfolders(str(base)))]
    if case_hint(str(base), info.folder) or any((place / info.folder).is_dir() for place in near):
        raise DataRootError(
            f"{base} has no folder {info.folder!r}.{suggest_root(str(base), info.folder)} "
            f"(To download to {folder} all the same, create that folder first.)"
        )
    return folder


@contextlib.contextmanager
def staging(folder: Path) -> Iterator[Path]:
    """The folder for unfinished things, for this process alone; removed at the end if nothing is left in it."""
    aside = folder / STAGING
    aside.mkdir(exist_ok=True)
    lock = aside / "lock"
    with open(lock, "w") as file:
        lock_file(file.fileno(), folder)
        for leftover in aside.glob(f"*{UNPACKED}"):
            shutil.rmtree(leftover)
        yield aside
        lock.unlink()
    with contextlib.suppress(OSError):  # partial downloads stay for the next try
        aside.rmdir()


def lock_file(descriptor: int, folder: Path) -> None:
    """Take a lock that ends with the process; systems without locks do without.

    Raises:
        DownloadError: another process has it.
    """
    try:
        import fcntl
    except ImportError:
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise DownloadError(f"another process is downloading to {folder}: wait until it is done") from error
    except OSError as error:  # a file system without locks
        logging.getLogger(__name__).debug("no lock on %s: %s", folder, error)


class Job:
    """The download of one data set.

    Args:
        info: the data set.
        folder: its folder.
        aside: folder for unfinished things, on the same disk.
        root: data root.
        options: how to download.
    """

    def __init__(self, info: DatasetInfo, folder: Path, aside: Path, root: Path, options: DownloadOptions) -> None:
        self.info, self.folder, self.aside, self.root, self.options = info, folder, aside, root, options

    def run(self) -> list[tuple[Step, Exception]]:
        """Fetch all that is missing; returns what could not be had, and why."""
        steps = plan(self.info, self.folder)
        for source in self.info.sources:
            if all(step.source is not source for step in steps):
                self.remove_leftovers(source)
                self.options.say(f"{self.info.name}: {', '.join(source.provides)} is there already and stays as it is")
        if self.info.bundle and not steps:
            self.remove_leftovers(self.info.bundle)
        if self.options.bundle and self.info.bundle and steps:
            return self.try_bundle([(step, DownloadError("it was to come from the bundle.")) for step in steps])
        failures = [(step, error) for step in steps if (error := self.attempt(step)) is not None]
        images = [step for step, _ in failures if step.source.archive and not step.source.optional]
        return self.try_bundle(failures) if images and self.info.bundle else failures

    def attempt(self, step: Step) -> Exception | None:
        """Fetch one source; returns the error, if any."""
        try:
            self.obtain(step.source, step.missing)
        except (DownloadError, ArchiveError, LayoutError) as error:
            return error
        return None

    def try_bundle(self, failures: list[tuple[Step, Exception]]) -> list[tuple[Step, Exception]]:
        """Fetch the bundle for what could not be had otherwise; returns what is missing still."""
        wanted = [name for step, _ in failures if not step.source.optional for name in step.missing]
        if not wanted:
            return failures
        self.options.say(f"{self.info.name}: taking {', '.join(wanted)} from {self.info.bundle.file}")
        error = self.attempt(Step(self.info.bundle, tuple(wanted)))
        if error:
            self.options.say(f"{self.info.name}: no help from the bundle. {error}")
        left = {step.source.file for step in plan(self.info, self.folder)}
        return [(step, first) for step, first in failures if step.source.file in left]

    def obtain(self, source: Source, missing: Sequence[str]) -> None:
        """Fetch one source and move what it holds into place."""
        path = self.aside / source.file
        if not path.exists():
            size = readable_size(source.size) if source.size else "size unknown"
            self.options.say(f"{self.info.name}: fetching {source.file} ({size})")
            mirror = fetch(
                source.mirrors, path, self.root, self.options.fetch, lambda file: check_content(file, source, self.info)
            )
            if not mirror.verified and not source.split and mirror.scheme != "root":
                self.options.say(f"{self.info.name}: {source.file} was not verified: no checksum is known")
        if source.archive:
            self.unpack_into_place(path, source, missing)
        elif not os.path.lexists(self.folder / source.provides[0]):
            os.rename(path, self.folder / source.provides[0])
        self.remove_leftovers(source)

    def remove_leftovers(self, source: Source) -> None:
        """Remove what was fetched of a source that is in place; the process that put it there may have been killed."""
        for leftover in self.aside.glob(f"{source.file}*"):
            leftover.unlink()

    def unpack_into_place(self, path: Path, source: Source, missing: Sequence[str]) -> None:
        """Unpack an archive aside, and move its content into place once it is all there."""
        unpacked = self.aside / (source.file + UNPACKED)
        try:
            self.unpack_aside(path, unpacked)
            if source.nested:
                unpacked = self.unpack_nested(unpacked, source)
            top = find_top(unpacked, source, missing)
            place(top, self.folder, dict(source.renames), missing, everything=bool(source.provides))
        except ArchiveError:
            path.unlink(missing_ok=True)  # damaged or hostile: the next try starts anew
            raise
        except LayoutError as error:
            raise LayoutError(f"{error}. It is kept for you to look at: {path}") from error
        finally:
            for leftover in self.aside.glob(f"{source.file}*{UNPACKED}"):
                shutil.rmtree(leftover)

    def unpack_nested(self, outer: Path, source: Source) -> Path:
        """Unpack the archive in the archive."""
        inner = outer / source.nested
        if not inner.is_file():
            raise LayoutError(f"{source.file} has no {source.nested}")
        unpacked = self.aside / (source.file + "-nested" + UNPACKED)
        self.unpack_aside(inner, unpacked)
        return unpacked

    def unpack_aside(self, path: Path, unpacked: Path) -> None:
        """Unpack with a bar."""
        with progress_bar(f"unpacking {path.name}", None, 0, self.options.fetch.progress) as bar:
            unpack(path, unpacked, self.options.limits, bar.update)


def check_content(path: Path, source: Source, info: DatasetInfo) -> None:
    """Refuse a file that cannot be what it should be, such as the web page that a dead link leads to.

    Raises:
        ValueError: it is no archive, no split file of this data set, or a web page.
    """
    if source.archive:
        if not is_archive(path):
            raise WrongContentError(f"what came is neither a zip nor a tar file; {describe_start(path)}")
    elif source.split:
        check_split(path, info)
    elif path.read_bytes()[:64].lstrip()[:1] == b"<":
        raise WrongContentError(f"what came is wrong; {describe_start(path)}")


def check_split(path: Path, info: DatasetInfo) -> None:
    """Refuse a split file that has not the classes and the numbers of images that are published."""
    entries = parse_entries(path.read_bytes(), info.split)
    classes = len(check_classes(entries, info.split))
    counts = tuple(len(entries[part]) for part in PARTS)
    if classes != info.classes or counts != info.counts:
        raise WrongContentError(
            f"what came has {classes} classes and {counts} images for train, val and test; "
            f"the published split has {info.classes} and {info.counts}"
        )


def find_top(unpacked: Path, source: Source, missing: Sequence[str]) -> Path:
    """The folder in an unpacked archive that has all the names that are missing.

    Raises:
        LayoutError: no such folder.
    """
    before = {new: old for old, new in source.renames}
    names = [before.get(name, name) for name in missing]
    for top in (unpacked / source.inside, unpacked):
        if all((top / name).exists() for name in names):
            return top
    found = ", ".join(sorted(child.name for child in unpacked.iterdir())[:5]) or "nothing"
    raise LayoutError(f"{source.file} should hold {', '.join(names)} but holds {found}")


def place(top: Path, folder: Path, renames: dict[str, str], missing: Sequence[str], everything: bool) -> None:
    """Move what was unpacked into the data set's folder; what is there already stays.

    The missing names go last: they are what tells the next run that nothing more is to be done.
    """
    children = {renames.get(child.name, child.name): child for child in top.iterdir()}
    names = [name for name in sorted(children) if name in missing or everything]
    for name in sorted(names, key=lambda name: name in missing):
        if not os.path.lexists(folder / name):
            os.rename(children[name], folder / name)
