"""Download a data set into CoOp's layout: fetch, verify, unpack aside, and move into place as the last step.

Everything unfinished lies in `.download` in the data set's folder. What is in the folder already is never touched: a
source whose names all exist is skipped, and of others only what is missing is added.

A file is written under a name that holds `.part`, verified, and only then gets its final name. What arrived of it
survives an interruption, and the next try asks for the rest, provided that the server still has the same file.
"""

import contextlib
import hashlib
import json
import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urljoin, urlsplit

from common.files import FolderLock, LockedError, atomic_write, hash_file, remove_dead_temporaries
from datasets.sources import DatasetInfo, Mirror, Source, readable_size
from datasets.splits import PARTS, DataRootError, check_classes, parse_entries, suggest_root
from datasets.unpack import ArchiveError, describe_start, is_archive, unpack

STAGING = ".download"
UNPACKED = ".unpacked"
CHUNK = 1 << 16
PASSING = (408, 416, 425, 429, 500, 502, 503, 504)  # answers that may be different in a moment


class DownloadError(OSError):
    """A file that could not be fetched."""


class NoSpaceError(OSError):
    """The disk is too small for what is to come."""


class BrokenTransferError(DownloadError):
    """A transfer that broke off and can be taken up again."""


class LayoutError(ValueError):
    """A file that is not of the kind it should be, or an archive that does not hold what it should."""


@dataclass(frozen=True)
class DownloadOptions:
    """How to download, and how patiently."""

    timeout: float = 60.0  # seconds without a byte after which a connection counts as stalled
    retries: int = 3  # tries in a row that bring nothing new before a mirror is given up
    pause: float = 1.0  # seconds before the first new try after one that brought nothing; doubled each time
    progress: bool | None = None  # show bars; None shows them on a terminal only
    bundle: bool = False  # fetch the bundle at once rather than the sources
    say: Callable[[str], None] = print  # where lines for the user go


# A whole data set


def download(info: DatasetInfo, root: str, options: DownloadOptions) -> bool:
    """Fetch what is missing of a data set; whether everything that training and testing need is there now.

    Raises:
        DataRootError: the data set's folder is one level off.
        OSError: the disk is full or cannot be written to, or another process is downloading the same.
    """
    folder, bundle = dataset_folder(root, info), info.bundle
    created = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    failures: list[tuple[Source, list[str], Exception]] = []
    with staging(folder) as aside:
        job, steps = Job(info, folder, aside, options), plan(info, folder)
        for source, missing in steps:
            if not missing:
                job.remove_leftovers(source)
                job.say(f"{', '.join(source.provides)} is there already and stays as it is")
        if bundle and not any(missing for _, missing in steps):
            job.remove_leftovers(bundle)
        for source, missing in steps:
            error = None
            if missing and bundle and options.bundle:
                error = DownloadError("it was to come from the bundle.")
            elif missing:
                error = job.attempt(source, missing)
            if error:
                failures.append((source, missing, error))
        no_images = any(source.archive and not source.optional for source, _, _ in failures)
        wanted = [name for source, missing, _ in failures if not source.optional for name in missing]
        if bundle and wanted and (no_images or options.bundle):
            job.say(f"taking {', '.join(wanted)} from {bundle.file}")
            if error := job.attempt(bundle, wanted):
                job.say(f"no help from the bundle. {error}")
            left = [source for source, missing in plan(info, folder) if missing]
            failures = [failure for failure in failures if failure[0] in left]
    if created:
        with contextlib.suppress(OSError):  # nothing came
            folder.rmdir()
    for source, missing, error in failures:
        purpose = f" (only needed for {source.optional})" if source.optional else ""
        pages = " or ".join(mirror.page for mirror in source.mirrors if mirror.scheme != "root")
        cure = f"save {pages} as {folder / source.provides[0]}"
        if source.archive:
            cure = f"download {pages} and unpack it so that {folder} has {', '.join(missing)}"
        job.say(f"{source.file} is missing{purpose}. {error}\n  By hand: {cure}")
    unfetched = lacks_images(info, folder)
    if info.by_hand and unfetched:
        options.say(info.by_hand.format(folder=folder))
    complete = not unfetched and all(source.optional for source, _, _ in failures)
    if complete:
        options.say(
            f"{info.name} is in {folder}. Check it: python -m datasets check {info.name} --root {folder.parent}"
        )
    return complete


def describe_plan(info: DatasetInfo, root: str) -> list[str]:
    """What `download` would do, in lines; nothing is written."""
    folder = dataset_folder(root, info)
    lines, needed = [f"{info.name} -> {folder} (licence: {info.licence})"], False
    for source, missing in plan(info, folder):
        if not missing:
            lines.append(f"  {source.file}: there already ({', '.join(source.provides)})")
            continue
        needed = True
        purpose = f", needed for {source.optional}" if source.optional else ""
        lines.append(f"  {source.file}: {readable_size(source.size)}{purpose}; adds {', '.join(missing)}")
        lines += describe_mirrors(source)
    if info.bundle and needed:
        lines.append(f"  {info.bundle.file}: {readable_size(info.bundle.size)}, if an image archive cannot be had")
        lines += describe_mirrors(info.bundle)
    if info.by_hand and lacks_images(info, folder):
        lines.append(info.by_hand.format(folder=folder))
    return lines


def describe_mirrors(source: Source) -> Iterator[str]:
    """Address of each mirror and how what comes from it is verified."""
    for mirror in source.mirrors:
        how = "verified by its classes and counts" if source.split else "not verified"
        if mirror.checksum:
            how = " ".join(mirror.checksum)
        yield f"    {mirror.page} ({how})"


def plan(info: DatasetInfo, folder: Path) -> list[tuple[Source, list[str]]]:
    """Every source with the names that it should add: none if all of them are there."""
    return [(each, [name for name in each.provides if not os.path.lexists(folder / name)]) for each in info.sources]


def lacks_images(info: DatasetInfo, folder: Path) -> bool:
    """Whether a folder of images is not there."""
    return not all((folder / name).is_dir() for name, _ in info.folders)


def dataset_folder(root: str, info: DatasetInfo) -> Path:
    """Where the data set goes; a DataRootError if it exists near by, so that another root is probably meant."""
    base = os.path.abspath(os.path.expanduser(root))
    folder = Path(base, info.folder)
    if not folder.is_dir() and (hint := suggest_root(base, info.folder)):
        raise DataRootError(
            f"{base} has no folder {info.folder!r}.{hint} "
            f"(To download to {folder} all the same, create that folder first.)"
        )
    return folder


@contextlib.contextmanager
def staging(folder: Path) -> Iterator[Path]:
    """The folder for unfinished things, for this process alone; removed at the end if nothing is left in it."""
    aside = folder / STAGING
    lock = FolderLock(aside / "lock")
    try:
        lock.acquire()
    except LockedError as error:
        raise DownloadError(f"another process is downloading to {folder}: {error}") from error
    try:
        for leftover in aside.glob(f"*{UNPACKED}"):
            shutil.rmtree(leftover)
        yield aside
    finally:
        lock.release()
        with contextlib.suppress(OSError):  # partial downloads stay for the next try
            aside.rmdir()


@dataclass
class Job:
    """The download of one data set into its folder."""

    info: DatasetInfo
    folder: Path
    aside: Path  # for unfinished things, on the same disk
    options: DownloadOptions

    def say(self, text: str) -> None:
        """Tell the user."""
        self.options.say(f"{self.info.name}: {text}")

    def attempt(self, source: Source, missing: Sequence[str]) -> Exception | None:
        """Fetch one source and move what it holds into place; returns the error, if any."""
        path = self.aside / source.file
        try:
            if not path.exists():
                self.say(f"fetching {source.file} ({readable_size(source.size) if source.size else 'size unknown'})")
                mirror = fetch(
                    *(source.mirrors, path, self.folder.parent, self.options),
                    check=lambda file: check_content(file, source, self.info),
                )
                if not mirror.verified and not source.split and mirror.scheme != "root":
                    self.say(f"{source.file} was not verified: no checksum is known")
            if source.archive:
                self.unpack_into_place(path, source, missing)
            elif not os.path.lexists(self.folder / source.provides[0]):
                os.rename(path, self.folder / source.provides[0])
            self.remove_leftovers(source)
        except (DownloadError, ArchiveError, LayoutError) as error:
            return error
        return None

    def remove_leftovers(self, source: Source) -> None:
        """Remove what was fetched of a source that is in place; the process that put it there may have been killed."""
        for leftover in self.aside.glob(f"{source.file}*"):
            leftover.unlink()

    def unpack_into_place(self, path: Path, source: Source, missing: Sequence[str]) -> None:
        """Unpack an archive aside, and move its content into place once it is all there."""

        def unpack_aside(archive: Path, name: str) -> Path:
            unpacked = self.aside / f"{name}{UNPACKED}"
            with progress_bar(f"unpacking {archive.name}", None, 0, self.options.progress) as bar:
                unpack(archive, unpacked, progress=bar.update)
            return unpacked

        try:
            top = unpack_aside(path, source.file)
            if source.nested:
                inner = top / source.nested
                if not inner.is_file():
                    raise LayoutError(f"{source.file} has no {source.nested}")
                top = unpack_aside(inner, f"{source.file}-nested")
            place(top, source, self.folder, missing)
        except ArchiveError:
            path.unlink(missing_ok=True)  # damaged or hostile: the next try starts anew
            raise
        except LayoutError as error:
            raise LayoutError(f"{error}. It is kept for you to look at: {path}") from error
        finally:
            for leftover in self.aside.glob(f"{source.file}*{UNPACKED}"):
                shutil.rmtree(leftover)


def check_content(path: Path, source: Source, info: DatasetInfo) -> None:
    """Refuse a file that cannot be what it should be, such as the web page that a dead link leads to."""
    if source.archive:
        if not is_archive(path):
            raise LayoutError(f"what came is neither a zip nor a tar file; {describe_start(path)}")
    elif source.split:
        entries = parse_entries(path.read_bytes(), info.split)
        classes = len(check_classes(entries, info.split))
        counts = tuple(len(entries[part]) for part in PARTS)
        if classes != info.classes or counts != info.counts:
            raise LayoutError(
                f"what came has {classes} classes and {counts} images for train, val and test; "
                f"the published split has {info.classes} and {info.counts}"
            )
    elif path.read_bytes()[:64].lstrip()[:1] == b"<":
        raise LayoutError(f"what came is wrong; {describe_start(path)}")


def place(unpacked: Path, source: Source, folder: Path, missing: Sequence[str]) -> None:
    """Move what was unpacked, which must hold all that is missing, into the data set's folder; what is there stays."""
    renames = dict(source.renames)
    before = {new: old for old, new in source.renames}
    names = [before.get(name, name) for name in missing]
    tops = [top for top in (unpacked / source.inside, unpacked) if all((top / name).exists() for name in names)]
    if not tops:
        found = ", ".join(sorted(child.name for child in unpacked.iterdir())[:5]) or "nothing"
        raise LayoutError(f"{source.file} should hold {', '.join(names)} but holds {found}")
    children = {renames.get(child.name, child.name): child for child in tops[0].iterdir()}
    # The missing names go last: they are what tells the next run that nothing more is to be done
    for name in sorted(children, key=lambda name: (name in missing, name)):
        if (name in missing or source.provides) and not os.path.lexists(folder / name):
            os.rename(children[name], folder / name)


# One file


def fetch(
    mirrors: Sequence[Mirror],
    path: Path,
    root: Path,
    options: DownloadOptions,
    check: Callable[[Path], None] = lambda path: None,
) -> Mirror:
    """Fetch a file from the first mirror that has it whole and right; returns that mirror.

    `root` is the data root, for mirrors in it; `check` raises a ValueError if the content is not what it should be.

    Raises:
        DownloadError: no mirror had it; the message says why for each.
    """
    failures = []
    for mirror in mirrors:
        part = path.with_name(f"{path.name}.part-{hashlib.sha256(mirror.url.encode()).hexdigest()[:8]}")
        complete = False
        try:
            if mirror.scheme == "root":
                if not (root / mirror.rest).is_file():
                    raise DownloadError("it is not there")
                shutil.copyfile(root / mirror.rest, part)
            elif mirror.scheme == "gdrive":
                fetch_drive(mirror, part, options)
            else:
                fetch_http(mirror, part, options)
            complete, size = True, size_of(part)
            if mirror.size is not None and size != mirror.size:
                raise DownloadError(f"it has {size:,} bytes instead of {mirror.size:,}")
            kind, value = mirror.checksum or ("", "")
            if kind and (found := hash_file(part, kind)) != value:
                raise DownloadError(f"its {kind} is {found} instead of {value}: another version, or damaged on the way")
            check(part)
        except (DownloadError, ValueError) as error:
            failures.append(f"  {mirror.page}: {error}")
            if complete:
                forget(part)
            continue
        with open(part, "rb") as file:
            os.fsync(file.fileno())
        os.replace(part, path)
        forget(part)
        return mirror
    raise DownloadError(f"{path.name} could not be fetched:\n" + "\n".join(failures))


def forget(part: Path) -> None:
    """Remove what is left of a transfer."""
    part.unlink(missing_ok=True)
    state_path(part).unlink(missing_ok=True)
    remove_dead_temporaries(part.parent, state_path(part).name.__eq__)


def fetch_drive(mirror: Mirror, part: Path, options: DownloadOptions) -> None:
    """Fetch a file from Google Drive; gdown keeps what arrived and takes it up again."""
    import gdown

    quiet = not (sys.stderr.isatty() if options.progress is None else options.progress)
    try:
        done = gdown.download(
            id=mirror.rest, output=str(part), quiet=quiet, resume=True, timeout=options.timeout, retries=options.retries
        )
    except Exception as error:  # gdown raises errors of its own, of requests, and plain ones
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DownloadError(f"{reason[:300]} (Google Drive limits downloads per day)") from error
    if done is None or not part.is_file():
        raise DownloadError("Google Drive gave no file: it limits downloads per day")


def fetch_http(mirror: Mirror, part: Path, options: DownloadOptions) -> None:
    """Fetch a file over HTTP, as often as it takes; urllib3's Retry would not take up an answer that breaks off."""
    idle = 0
    while True:
        before = size_of(part)
        try:
            return transfer(mirror, part, options)
        except BrokenTransferError as error:
            idle = 0 if size_of(part) > before else idle + 1
            if idle > options.retries:
                raise DownloadError(f"{error}; given up after {idle} tries without progress") from error
        time.sleep(options.pause * 2**idle / 2)


def transfer(mirror: Mirror, part: Path, options: DownloadOptions) -> None:
    """One try: ask for what is missing, and write what comes, as it comes."""
    import requests  # takes as long as the rest of the package
    from urllib3 import Retry
    from urllib3.exceptions import HTTPError, ReadTimeoutError

    try:
        state = json.loads(state_path(part).read_text())
    except (OSError, ValueError):
        state = {}
    # Without a checksum, only the server's word tells that the rest belongs to what is there already
    offset = size_of(part) if state and (state["validator"] or mirror.verified) else 0
    if offset and offset == (mirror.size or state["total"]):
        return
    headers = {"User-Agent": "Mozilla/5.0 (datasets download)", "Accept-Encoding": "identity"}
    if offset:
        headers["Range"] = f"bytes={offset}-"
        if state["validator"]:
            headers["If-Range"] = state["validator"]
    with requests.Session() as session:
        # A server may close, without a word, a connection that a redirection is about to use again
        for scheme in ("http://", "https://"):
            session.mount(scheme, requests.adapters.HTTPAdapter(max_retries=Retry(1, connect=0)))
        try:
            response = session.get(
                mirror.url, headers=headers, timeout=options.timeout, stream=True, hooks={"response": refuse_redirect}
            )
        except (requests.ConnectionError, requests.Timeout) as error:
            reason = str(error).rpartition(": ")[2].rstrip("')\"")
            reason = "timed out" if isinstance(error, requests.Timeout) else reason
            raise BrokenTransferError(f"no connection ({reason})") from error
        except requests.RequestException as error:  # redirected in circles, or to no address
            raise DownloadError(str(error)) from error
        if not 200 <= response.status_code < 300:
            if response.status_code == 416:  # what is there already is no part of the server's file
                forget(part)
            kind = BrokenTransferError if response.status_code in PASSING else DownloadError
            raise kind(f"the server answers {response.status_code} ({response.reason})")
        length = response.headers.get("Content-Length", "")
        total = int(length) if length.isdecimal() else None
        if response.status_code != 206:  # the whole file
            offset = 0
        else:
            match = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
            total = int(match[2]) if match and match[2] != "*" else None
            if not match or int(match[1]) != offset or total != state["total"]:
                forget(part)
                raise BrokenTransferError("the server's file changed meanwhile")
        if None not in (total, mirror.size) and total != mirror.size:
            raise DownloadError(f"the server has {total:,} bytes instead of {mirror.size:,}: another version")
        expected = mirror.size if mirror.size is not None else total
        needed, free = (expected or 0) - offset, shutil.disk_usage(part.parent).free
        if free < needed:
            raise NoSpaceError(
                f"{part.parent} is on a disk with {readable_size(free)} free, {readable_size(needed)} are needed: make "
                "room, or link the data set's folder to another disk"
            )
        # What identifies the server's version of the file: a strong ETag, else the date of the last change
        tag = response.headers.get("ETag", "")
        validator = tag if tag and not tag.startswith("W/") else response.headers.get("Last-Modified", "")
        with atomic_write(state_path(part), "w") as file:
            json.dump({"validator": validator, "total": total}, file)
        response.raw.enforce_content_length = False  # what came before the end is kept; the length is compared below
        bar = progress_bar(part.name.split(".part")[0], expected, offset, options.progress)
        with open(part, "r+b" if offset else "wb") as file, bar:
            file.seek(offset)
            file.truncate()
            chunk = b"-"
            while chunk:
                try:
                    chunk = response.raw.read1(CHUNK)  # what has arrived, so that a stall loses nothing
                except ReadTimeoutError as error:
                    raise BrokenTransferError("the connection stalled") from error
                except (HTTPError, OSError) as error:
                    raise BrokenTransferError(f"the connection broke ({error or type(error).__name__})") from error
                file.write(chunk)
                bar.update(len(chunk))
                if expected is not None and file.tell() > expected:
                    raise DownloadError(f"the server sends more than the {expected:,} bytes it should")
    if expected is not None and size_of(part) != expected:
        raise BrokenTransferError(f"the connection ended after {size_of(part):,} of {expected:,} bytes")


def refuse_redirect(response: Any, **_: Any) -> None:
    """Refuse a redirection to anything but web servers, or from https to http."""
    if response.is_redirect:
        target = urljoin(response.url, response.headers["Location"])
        schemes = urlsplit(response.url).scheme, urlsplit(target).scheme
        if schemes[1] not in ("http", "https") or schemes == ("https", "http"):
            raise DownloadError(f"it redirects to {target}, which is not followed")


def progress_bar(name: str, total: int | None, initial: int, shown: bool | None) -> Any:
    """A bar that counts bytes, on the error stream; None shows it on a terminal only."""
    from tqdm import tqdm

    disable = None if shown is None else not shown
    return tqdm(desc=name, total=total, initial=initial, unit="B", unit_scale=True, disable=disable)


def state_path(part: Path) -> Path:
    """Where the state of a transfer is kept."""
    return part.with_name(part.name + ".json")


def size_of(path: Path) -> int:
    """Bytes of a file, 0 if there is none."""
    return path.stat().st_size if path.exists() else 0
