"""Unpack an archive that nobody vouches for: nothing leaves the folder, no links, no devices, no bombs.

Zip and tar (plain, gzip, bzip2, xz). Everything is written into a new folder, which is removed again if anything is
wrong, so that an archive is unpacked whole or not at all. Links within the archive become copies of what they point to.
"""

import errno
import gzip
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
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from dassl.utils import is_zip

CHUNK = 1 << 20
PADDING = 64 << 20  # bytes after the end of a tar file, at most
LONG_HEADERS = (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE, *tarfile.GNU_TYPES[:2])
MOST_HEADER = 1 << 20  # bytes of a name or of attributes
JUNK = "__MACOSX"  # resource forks that macOS adds to zip archives
# NotImplementedError: a zip entry compressed in a way that Python does not know
DAMAGE = (
    *(tarfile.TarError, zipfile.BadZipFile, EOFError, gzip.BadGzipFile, zlib.error, lzma.LZMAError),
    *(NotImplementedError, UnicodeError),
)


class ArchiveError(ValueError):
    """An archive that cannot be unpacked."""


class UnsafeArchiveError(ArchiveError):
    """An archive with an entry that no honest archive of images has."""


@dataclass(frozen=True)
class Limits:
    """How much may come out of an archive.

    Attributes:
        total: bytes at most.
        ratio: bytes at most for each byte of the archive; images are compressed already and stay near 1.
        unrated: bytes for which the ratio does not matter, since lists of file names compress well.
        entries: number of files and folders at most.
    """

    total: int = 400 * 10**9
    ratio: float = 50.0
    unrated: int = 256 * 2**20
    entries: int = 3_000_000


@dataclass(frozen=True)
class Entry:
    """One entry of an archive: a folder, a link (`target` relative to the archive's top), or a file to `open`."""

    name: str
    kind: str
    target: str = ""
    open: Callable[[], IO[bytes]] | None = None


class BoundedInfo(tarfile.TarInfo):
    """A tar header that refuses long names and attributes which `tarfile` would read into memory whole."""

    def _proc_member(self, file: tarfile.TarFile) -> tarfile.TarInfo:
        """Called by `tarfile` for every header, which documents it as what a subclass overrides."""
        if self.type in LONG_HEADERS and self.size > MOST_HEADER:
            raise UnsafeArchiveError(f"a header of it takes {self.size:,} bytes, {MOST_HEADER:,} at most are read")
        return super()._proc_member(file)


class Writer:
    """Writes entries into a folder and keeps count of what came out.

    Args:
        folder: where to; it exists and is empty.
        archive_size: bytes of the archive.
        limits: how much may come out.
        progress: called with the number of bytes just written.
    """

    def __init__(self, folder: Path, archive_size: int, limits: Limits, progress: Callable[[int], None]) -> None:
        self.folder = folder
        self.most = min(limits.total, max(limits.unrated, int(limits.ratio * archive_size)))
        self.entries_left = limits.entries
        self.progress = progress
        self.written = 0

    def add(self, entry: Entry) -> None:
        """Write one folder or file.

        Raises:
            UnsafeArchiveError: its name leaves the folder or occurs twice, or too much has come out.
        """
        self.entries_left -= 1
        if self.entries_left < 0:
            raise UnsafeArchiveError("it has too many entries")
        name = safe_name(entry.name)
        if entry.kind == "folder":
            self.make_folder(self.folder / name)
        elif entry.open is not None:
            with entry.open() as content:
                self.write(name, content)

    def add_link(self, entry: Entry) -> None:
        """Write a copy of the file that a link points to.

        Raises:
            UnsafeArchiveError: the link leaves the archive or points to no file in it.
        """
        source = self.folder / safe_name(entry.target)
        if not source.is_file():
            raise UnsafeArchiveError(f"link {entry.name!r} points to {entry.target!r}, which is no file in it")
        with open(source, "rb") as content:
            self.write(safe_name(entry.name), content)

    def write(self, name: str, content: IO[bytes]) -> None:
        """Write one file that is not there yet."""
        path = self.folder / name
        self.make_folder(path.parent)
        if os.path.lexists(path):
            raise UnsafeArchiveError(f"{name!r} occurs twice in it")
        with open(path, "xb") as file:
            while chunk := content.read(CHUNK):
                self.written += len(chunk)
                if self.written > self.most:
                    raise UnsafeArchiveError(f"more than {self.most:,} bytes come out of it: it may be a bomb")
                file.write(chunk)
                self.progress(len(chunk))

    def make_folder(self, path: Path) -> None:
        """Create a folder and those above it."""
        above = path
        while not above.exists():  # one entry may name many folders
            self.entries_left, above = self.entries_left - 1, above.parent
        if self.entries_left < 0:
            raise UnsafeArchiveError("it has too many entries")
        try:
            path.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError) as error:
            name = path.relative_to(self.folder).as_posix()
            raise UnsafeArchiveError(f"{name!r} is a file and a folder in it") from error


def unpack(
    archive: Path, folder: Path, limits: Limits | None = None, progress: Callable[[int], None] = lambda count: None
) -> int:
    """Unpack an archive into a new folder, whole or not at all.

    Args:
        archive: zip or tar file.
        folder: must not exist yet; it is removed again if anything goes wrong.
        limits: how much may come out; the defaults suit sets of images.
        progress: called with the number of bytes just written.

    Returns:
        The number of bytes written.

    Raises:
        ArchiveError: it is no archive, or damaged.
        UnsafeArchiveError: it would write elsewhere, holds devices or links that leave it, or is a bomb.
    """
    folder.mkdir()
    try:
        writer = Writer(folder, archive.stat().st_size, limits or Limits(), progress)
        links = []
        for entry in read_entries(archive):
            if entry.kind == "link":
                links.append(entry)
            elif safe_name(entry.name).split("/")[0] != JUNK:
                writer.add(entry)
        for entry in links:
            writer.add_link(entry)
    except BaseException as error:
        shutil.rmtree(folder, ignore_errors=True)
        # zipfile seeks to wherever a damaged directory points, which may lie before the file's start; the error that
        # bz2 makes of damage is no system's
        if isinstance(error, DAMAGE) or (isinstance(error, OSError) and error.errno in (None, errno.EINVAL)):
            raise ArchiveError(f"{archive} is damaged: {error}") from error
        if isinstance(error, ArchiveError):
            raise type(error)(f"{archive} was not unpacked: {error}") from error
        raise
    return writer.written


def read_entries(archive: Path) -> Iterator[Entry]:
    """The entries of a zip or tar file, in order."""
    if is_zip(archive):
        yield from read_zip(archive)
    elif is_archive(archive):
        yield from read_tar(archive)
    else:
        raise ArchiveError(f"it is neither a zip nor a tar file; {describe_start(archive)}")


def read_zip(archive: Path) -> Iterator[Entry]:
    """The entries of a zip file; those made on Unix may be links or devices."""
    with zipfile.ZipFile(archive) as file:
        for info in file.infolist():
            if not info.filename:
                raise zipfile.BadZipFile("an entry has no name")
            mode = info.external_attr >> 16
            kind = stat.S_IFMT(mode)
            if info.flag_bits & 0x1:
                raise ArchiveError(f"{info.filename!r} needs a password")
            if kind == stat.S_IFLNK:
                target = file.read(info)[:4096].decode("utf-8", "replace") if info.file_size <= 4096 else ""
                yield Entry(info.filename, "link", beside(info.filename, target))
            elif info.filename.endswith("/") or kind == stat.S_IFDIR:
                yield Entry(info.filename, "folder")
            elif kind in (0, stat.S_IFREG):
                yield Entry(info.filename, "file", open=lambda info=info: file.open(info))
            else:
                raise UnsafeArchiveError(f"{info.filename!r} is a device")


def read_tar(archive: Path) -> Iterator[Entry]:
    """The entries of a tar file."""
    with tarfile.open(archive, "r:*", tarinfo=BoundedInfo) as file:
        for member in file:
            if member.isdir():
                yield Entry(member.name, "folder")
            elif member.isreg():
                yield Entry(member.name, "file", open=lambda member=member: file.extractfile(member))
            elif member.islnk():
                yield Entry(member.name, "link", member.linkname)
            elif member.issym():
                yield Entry(member.name, "link", beside(member.name, member.linkname))
            else:
                raise UnsafeArchiveError(f"{member.name!r} is a device")
        check_tar_end(file)


def check_tar_end(file: tarfile.TarFile) -> None:
    """Refuse a tar file that breaks off or whose compressed bytes do not have the checksum at their end.

    `tarfile` takes a damaged header for the end; the true end is a block of zeros, then padding.
    """
    file.fileobj.seek(file.offset)
    block = file.fileobj.read(tarfile.BLOCKSIZE)
    if len(block) < tarfile.BLOCKSIZE or block.strip(b"\0"):
        raise tarfile.ReadError(f"it breaks off at byte {file.offset:,}")
    for _ in range(PADDING // CHUNK):  # reading to the end is what compares the checksum
        if not file.fileobj.read(CHUNK):
            return
    raise tarfile.ReadError("it goes on after its end")


def beside(name: str, target: str) -> str:
    """A symbolic link's target, which is relative to the link's folder, relative to the archive's top."""
    return target if target.startswith("/") else posixpath.normpath(posixpath.join(posixpath.dirname(name), target))


def safe_name(name: str) -> str:
    """A relative path without "." and "..".

    Raises:
        UnsafeArchiveError: it is absolute, climbs out, or has characters that change its meaning on some system.
    """
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
