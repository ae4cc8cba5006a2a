"""Fetch one file: over HTTP with resumption, from Google Drive, or from elsewhere under the data root.

A file is written under a name that holds `.part`, verified, and only then gets its own name. What arrived of it
survives an interruption, and the next try asks for the rest, provided that the server still has the same file.
"""

import hashlib
import http.client
import json
import os
import re
import shutil
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from email.message import Message
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

from common.files import atomic_write, remove_dead_temporaries
from datasets.sources import Mirror, readable_size

CHUNK = 1 << 16
PASSING = (408, 416, 425, 429, 500, 502, 503, 504)  # answers that may be different in a moment


class DownloadError(OSError):
    """A file that could not be fetched."""


class IntegrityError(DownloadError):
    """A file that is not the one that was asked for."""


class NoSpaceError(OSError):
    """The disk is too small for what is to come."""


class BrokenTransferError(DownloadError):
    """A transfer that broke off and can be taken up again."""


@dataclass(frozen=True)
class FetchOptions:
    """How patiently to fetch.

    Attributes:
        timeout: seconds without a byte after which a connection counts as stalled.
        retries: tries in a row that bring nothing new before a mirror is given up.
        pause: seconds before the first new try after one that brought nothing; doubled each time.
        progress: show bars; None shows them on a terminal only.
    """

    timeout: float = 60.0
    retries: int = 3
    pause: float = 1.0
    progress: bool | None = None


def fetch(
    mirrors: Sequence[Mirror],
    path: Path,
    root: Path,
    options: FetchOptions,
    check: Callable[[Path], None] = lambda path: None,
) -> Mirror:
    """Fetch a file from the first mirror that has it whole and right.

    Args:
        mirrors: tried in order.
        path: where the file goes.
        root: data root, for mirrors in it.
        options: how patiently.
        check: raises a ValueError if the content is not what it should be.

    Returns:
        The mirror that it came from.

    Raises:
        DownloadError: no mirror had it; the message says why for each.
    """
    failures = []
    for mirror in mirrors:
        try:
            fetch_from(mirror, path, root, options, check)
            return mirror
        except (DownloadError, ValueError) as error:
            failures.append(f"  {mirror.page}: {error}")
    raise DownloadError(f"{path.name} could not be fetched:\n" + "\n".join(failures))


def fetch_from(mirror: Mirror, path: Path, root: Path, options: FetchOptions, check: Callable[[Path], None]) -> None:
    """Fetch a file from one mirror, verify it, and give it its name."""
    part = path.with_name(f"{path.name}.part-{hashlib.sha256(mirror.url.encode()).hexdigest()[:8]}")
    if mirror.scheme == "root":
        copy_file(root / mirror.rest, part)
    elif mirror.scheme == "gdrive":
        fetch_drive(mirror, part, options)
    else:
        fetch_http(mirror, part, options)
    try:
        verify(part, mirror)
        check(part)
    except ValueError as error:
        forget(part)
        raise IntegrityError(str(error)) from error
    except IntegrityError:
        forget(part)
        raise
    with open(part, "rb") as file:
        os.fsync(file.fileno())
    os.replace(part, path)
    forget(part)


def verify(path: Path, mirror: Mirror) -> None:
    """Compare a file's size and checksum with those of the mirror, if known.

    Raises:
        IntegrityError: they differ.
    """
    size = path.stat().st_size
    if mirror.size is not None and size != mirror.size:
        raise IntegrityError(f"it has {size:,} bytes instead of {mirror.size:,}")
    kind, expected = ("sha256", mirror.sha256) if mirror.sha256 else ("md5", mirror.md5)
    if expected and (found := hash_file(path, kind)) != expected:
        raise IntegrityError(f"its {kind} is {found} instead of {expected}: another version, or damaged on the way")


def hash_file(path: Path, kind: str = "sha256") -> str:
    """Checksum of a file, in hexadecimal."""
    digest = hashlib.new(kind)
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def forget(part: Path) -> None:
    """Remove what is left of a transfer."""
    part.unlink(missing_ok=True)
    state_path(part).unlink(missing_ok=True)
    remove_dead_temporaries(part.parent, state_path(part).name.__eq__)


def copy_file(source: Path, part: Path) -> None:
    """Copy a file that another data set has already."""
    if not source.is_file():
        raise DownloadError("it is not there")
    shutil.copyfile(source, part)


def fetch_drive(mirror: Mirror, part: Path, options: FetchOptions) -> None:
    """Fetch a file from Google Drive; gdown keeps what arrived and takes it up again."""
    import gdown

    quiet = not (sys.stderr.isatty() if options.progress is None else options.progress)
    try:
        done = gdown.download(id=mirror.rest, output=str(part), quiet=quiet, resume=True)
    except Exception as error:  # gdown raises errors of its own, of requests, and plain ones
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DownloadError(f"{reason[:300]} (Google Drive limits downloads per day)") from error
    if done is None or not part.is_file():
        raise DownloadError("Google Drive gave no file: it limits downloads per day")


def fetch_http(mirror: Mirror, part: Path, options: FetchOptions) -> None:
    """Fetch a file over HTTP, as often as it takes.

    Raises:
        IntegrityError: the server has a file of another size.
        DownloadError: the server does not have it, or several tries in a row brought nothing new.
    """
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


def transfer(mirror: Mirror, part: Path, options: FetchOptions) -> None:
    """One try: ask for what is missing, and write what comes."""
    state = read_state(part, mirror)
    offset = size_of(part) if state else 0
    if offset and offset == (mirror.size or state["total"]):
        return
    with ask(mirror.url, offset, state, part, options.timeout) as response:
        offset, total = place_in_file(response, offset, state, part)
        if None not in (total, mirror.size) and total != mirror.size:
            raise IntegrityError(f"the server has {total:,} bytes instead of {mirror.size:,}: another version")
        expected = mirror.size if mirror.size is not None else total
        check_space(part.parent, (expected or 0) - offset)
        write_state(part, {"url": mirror.url, "validator": validator(response.headers), "total": total})
        receive(response, part, offset, expected, options)
    if expected is not None and size_of(part) != expected:
        raise BrokenTransferError(f"the connection ended after {size_of(part):,} of {expected:,} bytes")


def ask(url: str, offset: int, state: dict[str, Any], part: Path, timeout: float) -> Any:
    """Send the request for everything from `offset` on."""
    headers = {"User-Agent": "Mozilla/5.0 (datasets download)", "Accept-Encoding": "identity"}
    if offset:
        headers["Range"] = f"bytes={offset}-"
        if state["validator"]:
            headers["If-Range"] = state["validator"]
    opener = urllib.request.build_opener(WebRedirects)
    try:
        return opener.open(urllib.request.Request(url, headers=headers), timeout=timeout)
    except DownloadError:
        raise
    except urllib.error.HTTPError as error:
        with error:
            if error.code == 416:  # what is there already is no part of the server's file
                forget(part)
            kind = BrokenTransferError if error.code in PASSING else DownloadError
            raise kind(f"the server answers {error.code} ({error.reason})") from error
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)
        raise BrokenTransferError(f"no connection ({reason or type(error).__name__})") from error


class WebRedirects(urllib.request.HTTPRedirectHandler):
    """Follows redirections to web servers only, and never from https to http."""

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Message, newurl: str
    ) -> urllib.request.Request | None:
        """The request to the new address.

        Raises:
            DownloadError: it is not on the web, or gives up encryption.
        """
        scheme = urlsplit(newurl).scheme
        if scheme not in ("http", "https") or (urlsplit(req.full_url).scheme == "https" and scheme == "http"):
            raise DownloadError(f"it redirects to {newurl}, which is not followed")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def place_in_file(response: Any, offset: int, state: dict[str, Any], part: Path) -> tuple[int, int | None]:
    """Where in the file the answer begins, and how long the file is (None if the server does not say).

    Raises:
        BrokenTransferError: the answer does not fit what is there already, which is then dropped.
    """
    if response.status != 206:
        length = response.headers.get("Content-Length", "")
        return 0, int(length) if length.isdecimal() else None
    match = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
    total = int(match[2]) if match and match[2] != "*" else None
    if not match or int(match[1]) != offset or total != state["total"]:
        forget(part)
        raise BrokenTransferError("the server's file changed meanwhile")
    return offset, total


def receive(response: Any, part: Path, offset: int, expected: int | None, options: FetchOptions) -> None:
    """Write the answer to the file from `offset` on, as it comes."""
    with (
        open(part, "r+b" if offset else "wb") as file,
        progress_bar(part.name.split(".part")[0], expected, offset, options.progress) as bar,
    ):
        file.seek(offset)
        file.truncate()
        while chunk := read_some(response):
            file.write(chunk)
            bar.update(len(chunk))
            if expected is not None and file.tell() > expected:
                raise IntegrityError(f"the server sends more than the {expected:,} bytes it should")


def read_some(response: Any) -> bytes:
    """What has arrived; empty at the end."""
    try:
        return response.read1(CHUNK)
    except TimeoutError as error:
        raise BrokenTransferError("the connection stalled") from error
    except (OSError, http.client.HTTPException) as error:
        raise BrokenTransferError(f"the connection broke ({error or type(error).__name__})") from error


def progress_bar(name: str, total: int | None, initial: int, shown: bool | None) -> Any:
    """A bar that counts bytes, on the error stream."""
    from tqdm import tqdm

    return tqdm(
        desc=name,
        total=total,
        initial=initial,
        unit="B",
        unit_scale=True,
        disable=None if shown is None else not shown,
    )


def validator(headers: Message) -> str:
    """What identifies the server's version of the file: a strong ETag, else the date of the last change, else ""."""
    tag = headers.get("ETag", "")
    return tag if tag and not tag.startswith("W/") else headers.get("Last-Modified", "")


def state_path(part: Path) -> Path:
    """Where the state of a transfer is kept."""
    return part.with_name(part.name + ".json")


def read_state(part: Path, mirror: Mirror) -> dict[str, Any]:
    """The state of an earlier transfer; empty if there is none that can be taken up without doubt.

    Without a checksum, only the server's word tells that the rest belongs to what is there already.
    """
    try:
        state = json.loads(state_path(part).read_text())
    except (OSError, ValueError):
        return {}
    return state if state["url"] == mirror.url and (state["validator"] or mirror.verified) else {}


def write_state(part: Path, state: dict[str, Any]) -> None:
    """Keep the state of a transfer, for the next try."""
    with atomic_write(state_path(part), "w") as file:
        file.write(json.dumps(state))


def size_of(path: Path) -> int:
    """Bytes of a file, 0 if there is none."""
    return path.stat().st_size if path.exists() else 0


def check_space(folder: Path, needed: int) -> None:
    """Refuse to begin what cannot end.

    Raises:
        NoSpaceError: the disk has less room.
    """
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise NoSpaceError(
            f"{folder} is on a disk with {readable_size(free)} free, {readable_size(needed)} are needed: make room, or "
            "link the data set's folder to another disk"
        )
