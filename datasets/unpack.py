"""Unpack an archive that nobody vouches for: nothing leaves the folder, no links, no devices, no bombs.

Zip and tar (plain, gzip, bzip2, xz). Everything is written into a new folder, which is removed again if anything is
wrong, so that an archive is unpacked whole or not at all. Links within the archive become copies of what they point to.
`tarfile` and `zipfile` read; what is written is decided here, by one rule for both kinds: tarfile's filters bound
neither the bytes nor the entries, and zipfile has none.
"""

import errno
import lzma
import os
import posixpath
import re
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, NamedTuple

from common.files import is_zip

CHUNK = 1 << 20
PADDING = 64 << 20  # bytes after the end of a tar file, at most
LONG_HEADERS = (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE, *tarfile.GNU_TYPES[:2])
MAX_HEADER = 1 << 20  # bytes of a name or of attributes
JUNK = "__MACOSX"  # resource forks that macOS adds to zip archives
# NotImplementedError: a zip entry compressed in a way that Python does not know
DAMAGE = (tarfile.TarError, zipfile.BadZipFile, EOFError, zlib.error, lzma.LZMAError, NotImplementedError, UnicodeError)


class ArchiveError(ValueError):
    """An archive that cannot be unpacked."""


class UnsafeArchiveError(ArchiveError):
    """An archive with an entry that no honest archive of images has."""


class Limits(NamedTuple):
    """How much may come out of an archive."""

    total: int = 400 * 10**9  # bytes
    ratio: float = 50.0  # bytes for each byte of the archive; images are compressed already and stay near 1
    unrated: int = 256 * 2**20  # bytes for which the ratio does not matter: lists of file names compress well
    entries: int = 3_000_000  # files and folders


class Entry(NamedTuple):
    """One entry of an archive: a file to `open`, a link (`target` relative to the archive's top), or a folder."""

    name: str
    open: Callable[[], IO[bytes]] | None = None
    target: str | None = None


def unpack(
    archive: Path, folder: Path, limits: Limits | None = None, progress: Callable[[int], None] = lambda count: None
) -> int:
    """Unpack an archive into a new folder, whole or not at all; returns the number of bytes written.

    `folder` must not exist yet; `progress` is called with the number of bytes just written.

    Raises:
        ArchiveError: it is no archive, or damaged.
        UnsafeArchiveError: it would write elsewhere, holds devices or links that leave it, or is a bomb.
    """
    folder.mkdir()
    try:
        writer = Writer(folder, archive.stat().st_size, limits or Limits(), progress)
        links = []
        if not is_archive(archive):
            raise ArchiveError(f"it is neither a zip nor a tar file; {describe_start(archive)}")
        for entry in read_zip(archive) if is_zip(archive) else read_tar(archive):
            writer.count(1)
            name = safe_name(entry.name)
            if entry.target is not None:
                links.append(entry)
            elif name.split("/")[0] == JUNK:
                continue
            elif entry.open is None:
                writer.make_folder(folder / name)
            else:
                with entry.open() as content:
                    writer.write(name, content)
        for entry in links:
            source = folder / safe_name(entry.target)
            if not source.is_file():
                raise UnsafeArchiveError(f"link {entry.name!r} points to {entry.target!r}, which is no file in it")
            with open(source, "rb") as content:
                writer.write(safe_name(entry.name), content)
    except BaseException as error:
        shutil.rmtree(folder, ignore_errors=True)
        # zipfile seeks to wherever a damaged directory points, which may lie before the file's start; damaged bz2 and
        # gzip raise an OSError that is no system's
        if isinstance(error, DAMAGE) or (isinstance(error, OSError) and error.errno in (None, errno.EINVAL)):
            raise ArchiveError(f"{archive} is damaged: {error}") from error
        if isinstance(error, ArchiveError):
            raise type(error)(f"{archive} was not unpacked: {error}") from error
        raise
    return writer.written


class Writer:
    """Writes into a folder, which exists and is empty, and keeps count of what came out of an archive."""

    def __init__(self, folder: Path, archive_size: int, limits: Limits, progress: Callable[[int], None]) -> None:
        self.folder, self.progress = folder, progress
        self.max_bytes = min(limits.total, max(limits.unrated, int(limits.ratio * archive_size)))
        self.entries_left, self.written = limits.entries, 0

    def count(self, entries: int) -> None:
        """Count entries and the folders that they need."""
        self.entries_left -= entries
        if self.entries_left < 0:
            raise UnsafeArchiveError("it has too many entries")

    def write(self, name: str, content: IO[bytes]) -> None:
        """Write one file that is not there yet."""
        path = self.folder / name
        self.make_folder(path.parent)
        if os.path.lexists(path):
            raise UnsafeArchiveError(f"{name!r} occurs twice in it")
        with open(path, "xb") as file:
            while chunk := content.read(CHUNK):
                self.written += len(chunk)
                if self.written > self.max_bytes:
                    raise UnsafeArchiveError(f"more than {self.max_bytes:,} bytes come out of it: it may be a bomb")
                file.write(chunk)
                self.progress(len(chunk))

    def make_folder(self, path: Path) -> None:
        """Create a folder and those above it: one entry may name many."""
        self.count(sum(not above.exists() for above in (path, *path.parents)))
        try:
            path.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError) as error:
            name = path.relative_to(self.folder).as_posix()
            raise UnsafeArchiveError(f"{name!r} is a file and a folder in it") from error


def read_zip(archive: Path) -> Iterator[Entry]:
    """The entries of a zip file; those made on Unix may be links or devices."""
    with zipfile.ZipFile(archive) as file:
        for info in file.infolist():
            if not info.filename:
                raise zipfile.BadZipFile("an entry has no name")
            kind = stat.S_IFMT(info.external_attr >> 16)
            if info.flag_bits & 0x1:
                raise ArchiveError(f"{info.filename!r} needs a password")
            if kind == stat.S_IFLNK:
                target = file.read(info)[:4096].decode("utf-8", "replace") if info.file_size <= 4096 else ""
                yield Entry(info.filename, target=beside(info.filename, target))
            elif info.filename.endswith("/") or kind == stat.S_IFDIR:
                yield Entry(info.filename)
            elif kind in (0, stat.S_IFREG):
                yield Entry(info.filename, lambda info=info: file.open(info))
            else:
                raise UnsafeArchiveError(f"{info.filename!r} is a device")


class BoundedInfo(tarfile.TarInfo):
    """A tar header that refuses long names and attributes which `tarfile` would read into memory whole."""

    def _proc_member(self, file: tarfile.TarFile) -> tarfile.TarInfo:
        """Called by `tarfile` for every header, which documents it as what a subclass overrides."""
        if self.type in LONG_HEADERS and self.size > MAX_HEADER:
            raise UnsafeArchiveError(f"a header of it takes {self.size:,} bytes, {MAX_HEADER:,} at most are read")
        return super()._proc_member(file)


def read_tar(archive: Path) -> Iterator[Entry]:
    """The entries of a tar file, which must not break off: `tarfile` takes a damaged header for the end."""
    with tarfile.open(archive, "r:*", tarinfo=BoundedInfo) as file:
        for member in file:
            if member.isdir():
                yield Entry(member.name)
            elif member.isreg():
                yield Entry(member.name, lambda member=member: file.extractfile(member))
            elif member.islnk():
                yield Entry(member.name, target=member.linkname)
            elif member.issym():
                yield Entry(member.name, target=beside(member.name, member.linkname))
            else:
                raise UnsafeArchiveError(f"{member.name!r} is a device")
        file.fileobj.seek(file.offset)
        block = file.fileobj.read(tarfile.BLOCKSIZE)  # the true end is a block of zeros, then padding
        if len(block) < tarfile.BLOCKSIZE or block.strip(b"\0"):
            raise tarfile.ReadError(f"it breaks off at byte {file.offset:,}")
        for _ in range(PADDING // CHUNK):  # reading to the end is what compares the checksum of compressed bytes
            if not file.fileobj.read(CHUNK):
                return
        raise tarfile.ReadError("it goes on after its end")


def beside(name: str, target: str) -> str:
    """A symbolic link's target, which is relative to the link's folder, relative to the archive's top."""
    return target if target.startswith("/") else posixpath.normpath(posixpath.join(posixpath.dirname(name), target))


def safe_name(name: str) -> str:
    """A relative path without "." and "..", if it stays in the folder on every system."""
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if name.startswith("/") or ".." in parts or re.match("[A-Za-z]:", name) or re.search(r"[\\\0]", name):
        raise UnsafeArchiveError(f"{name!r} would be written outside the folder")
    return "/".join(parts)


def is_archive(path: Path) -> bool:
    """Whether a file is a zip or tar file, judged by its first bytes."""
    try:
        if is_zip(path):
            return True
        with tarfile.open(path, "r:*", tarinfo=BoundedInfo):
            return True
    except UnsafeArchiveError:
        return True
    except (tarfile.TarError, EOFError, OSError, zlib.error, lzma.LZMAError):
        return False


def describe_start(path: Path) -> str:
    """Half a sentence on what a file that is no archive begins with."""
    with open(path, "rb") as file:
        start = file.read(64).strip()
    if start[:1] == b"<":
        return "it is a web page: the link may be dead, or the server asks for something first"
    return f"it begins with {start[:24]!r}" if start else "it is empty"
