"""Unpacking archives, honest and hostile."""

import io
import random
import stat
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from datasets.unpack import ArchiveError, Limits, UnsafeArchiveError, is_archive, unpack

FILES = {"images/a b/1.jpg": b"one", "images/ünï/2.jpg": b"two" * 1000, "list.txt": b""}


def member(name: str, kind: bytes = tarfile.REGTYPE, target: str = "", content: bytes = b"") -> tuple:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = kind, target, len(content)
    return info, content


def make_tar(path: Path, *members: tuple, mode: str = "w") -> Path:
    with tarfile.open(path, mode) as file:
        for info, content in members:
            file.addfile(info, io.BytesIO(content))
    return path


def make_zip(path: Path, *members: tuple[str, bytes], mode: int = 0, encrypted: bool = False) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in members:
            info = zipfile.ZipInfo(name)
            info.compress_type = zipfile.ZIP_DEFLATED
            info.external_attr = mode << 16
            file.writestr(info, content)
    if encrypted:
        data = bytearray(path.read_bytes())
        for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
            data[data.index(signature) + offset] |= 1
        path.write_bytes(data)
    return path


def tree(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def refused(archive: Path, kind: type[ArchiveError], match: str, limits: Limits | None = None) -> None:
    """Unpacking fails, and leaves nothing in or around the folder."""
    before = tree(archive.parent)
    with pytest.raises(kind, match=match) as raised:
        unpack(archive, archive.parent / "out", limits)
    assert str(archive) in str(raised.value)
    assert tree(archive.parent) == before
    assert not (archive.parent / "out").exists()


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz", "zip"])
def test_honest_archives_come_out_as_they_are(tmp_path: Path, mode: str) -> None:
    path, counted = tmp_path / "archive", []
    if mode == "zip":
        make_zip(path, ("images/", b""), ("images/empty/", b""), *FILES.items())
    else:
        folders = [member(name, tarfile.DIRTYPE) for name in ("./", "images", "images/empty")]
        make_tar(path, *folders, *(member(name, content=content) for name, content in FILES.items()), mode=mode)
    assert is_archive(path)
    assert unpack(path, tmp_path / "out", progress=counted.append) == sum(counted) == 3003
    assert tree(tmp_path / "out") == FILES
    assert (tmp_path / "out" / "images" / "empty").is_dir()


def test_nothing_is_executable_or_privileged_afterwards(tmp_path: Path) -> None:
    info, content = member("run.sh", content=b"#!/bin/sh")
    info.mode = 0o6777
    unpack(make_tar(tmp_path / "a.tar", (info, content)), tmp_path / "out")
    assert not (tmp_path / "out" / "run.sh").stat().st_mode & (
        stat.S_ISUID | stat.S_ISGID | stat.S_IXUSR | stat.S_IWOTH
    )


def test_what_macos_adds_is_left_out(tmp_path: Path) -> None:
    archive = make_zip(tmp_path / "a.zip", ("2750/1.jpg", b"1"), ("__MACOSX/2750/._1.jpg", b"fork"))
    unpack(archive, tmp_path / "out")
    assert tree(tmp_path / "out") == {"2750/1.jpg": b"1"}


ESCAPES = ["../evil", "a/../../evil", "/tmp/evil", "..", "..\\evil", "C:\\evil", "c:evil", "a/b\\..\\..\\..\\evil"]


@pytest.mark.parametrize("name", ESCAPES)
@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_names_that_leave_the_folder_are_refused(tmp_path: Path, name: str, kind: str) -> None:
    if kind == "tar":
        archive = make_tar(tmp_path / "a.tar", member("good", content=b"1"), member(name, content=b"evil"))
    else:
        archive = make_zip(tmp_path / "a.zip", ("good", b"1"), (name, b"evil"))
    refused(archive, UnsafeArchiveError, "outside the folder")


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE])
@pytest.mark.parametrize("target", ["../../secret", "/etc/passwd", "folder", "nowhere"])
def test_links_out_of_a_tar_or_to_no_file_are_refused(tmp_path: Path, kind: bytes, target: str) -> None:
    (tmp_path / "secret").write_bytes(b"secret")
    archive = make_tar(tmp_path / "a.tar", member("folder", tarfile.DIRTYPE), member("sub/link", kind, target))
    refused(archive, UnsafeArchiveError, "outside the folder|no file in it")


def test_a_file_cannot_be_written_through_a_link(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    archive = make_tar(
        tmp_path / "a.tar", member("door", tarfile.SYMTYPE, str(outside)), member("door/evil", content=b"evil")
    )
    refused(archive, UnsafeArchiveError, "outside the folder|no file in it")
    assert not list(outside.iterdir())


def test_links_within_an_archive_become_copies(tmp_path: Path) -> None:
    archive = make_tar(
        tmp_path / "a.tar",
        member("sub/soft", tarfile.SYMTYPE, "../real/file"),
        member("real/file", content=b"content"),
        member("hard", tarfile.LNKTYPE, "real/file"),
    )
    unpack(archive, tmp_path / "out")
    assert tree(tmp_path / "out") == dict.fromkeys(("sub/soft", "real/file", "hard"), b"content")
    assert not any(
        path.is_symlink() or path.stat().st_nlink > 1 for path in (tmp_path / "out").rglob("*") if path.is_file()
    )


@pytest.mark.parametrize("target", [b"../../etc/passwd", b"/etc/passwd", b"x" * 5000])
def test_links_out_of_a_zip_are_refused(tmp_path: Path, target: bytes) -> None:
    archive = make_zip(tmp_path / "a.zip", ("link", target), mode=stat.S_IFLNK | 0o777)
    refused(archive, UnsafeArchiveError, "outside the folder|no file in it")


@pytest.mark.parametrize("kind", [tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE])
def test_devices_in_a_tar_are_refused(tmp_path: Path, kind: bytes) -> None:
    refused(make_tar(tmp_path / "a.tar", member("dev", kind)), UnsafeArchiveError, "is a device")


@pytest.mark.parametrize("kind", [stat.S_IFCHR, stat.S_IFIFO, stat.S_IFSOCK])
def test_devices_in_a_zip_are_refused(tmp_path: Path, kind: int) -> None:
    refused(make_zip(tmp_path / "a.zip", ("dev", b""), mode=kind), UnsafeArchiveError, "is a device")


@pytest.mark.parametrize("names", [("a", "a"), ("a", "./a"), ("d/a", "d//a"), ("a", "a/b"), ("a/b", "a")])
@pytest.mark.parametrize("kind", ["tar", "zip"])
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_names_that_occur_twice_are_refused(tmp_path: Path, names: tuple[str, str], kind: str) -> None:
    if kind == "tar":
        archive = make_tar(tmp_path / "a.tar", *(member(name, content=name.encode()) for name in names))
    else:
        archive = make_zip(tmp_path / "a.zip", *((name, name.encode()) for name in names))
    refused(archive, UnsafeArchiveError, "occurs twice|a file and a folder")


SMALL = Limits(total=10**7, ratio=10.0, unrated=100_000, entries=5)


@pytest.mark.parametrize("kind", ["tar", "zip"])
@pytest.mark.parametrize(("count", "size"), [(1, 5_000_000), (4, 1_250_000)])
def test_bombs_are_stopped(tmp_path: Path, kind: str, count: int, size: int) -> None:
    zeros = [(str(index), bytes(size)) for index in range(count)]
    if kind == "tar":
        archive = make_tar(tmp_path / "a.tgz", *(member(name, content=data) for name, data in zeros), mode="w:gz")
    else:
        archive = make_zip(tmp_path / "a.zip", *zeros)
    refused(archive, UnsafeArchiveError, "100,000 bytes come out", SMALL)


def test_a_zip_that_lies_about_its_size_is_stopped(tmp_path: Path) -> None:
    archive = make_zip(tmp_path / "a.zip", ("0", bytes(5_000_000)))
    data = bytearray(archive.read_bytes())
    start = data.index(b"PK\x01\x02") + 24
    data[start : start + 4] = (10).to_bytes(4, "little")
    archive.write_bytes(data)
    refused(archive, ArchiveError, "damaged|come out", SMALL)


def test_a_total_and_a_number_of_entries_are_kept_to(tmp_path: Path) -> None:
    content = bytes(3000)
    archive = make_tar(tmp_path / "a.tar", *(member(str(index), content=content) for index in range(4)))
    refused(archive, UnsafeArchiveError, "more than 11,000 bytes", Limits(total=11_000))
    refused(archive, UnsafeArchiveError, "too many entries", Limits(entries=3))
    assert unpack(archive, tmp_path / "out", Limits(total=12_000, entries=4)) == 12_000


SECOND_HEADER = 512 + 9216  # of a plain tar file whose first file has 9,000 bytes


def cut(data: bytes) -> bytes:
    return data[: len(data) * 2 // 3]


def cut_between(data: bytes) -> bytes:
    return data[:SECOND_HEADER]


def flip(data: bytes) -> bytes:
    return data[:SECOND_HEADER] + bytes([data[SECOND_HEADER] ^ 0xFF]) + data[SECOND_HEADER + 1 :]


@pytest.mark.parametrize("kind", ["tar", "tar.gz", "tar.xz", "zip"])
@pytest.mark.parametrize("damage", [cut, cut_between, flip])
def test_damaged_archives_are_refused(tmp_path: Path, kind: str, damage: Callable[[bytes], bytes]) -> None:
    content = [(f"{index}.jpg", random.Random(index).randbytes(9000)) for index in range(9)]
    path = tmp_path / f"a.{kind}"
    if kind == "zip":
        make_zip(path, *content)
    else:
        mode = "w" + kind.removeprefix("tar").replace(".", ":")
        make_tar(path, *(member(name, content=data) for name, data in content), mode=mode)
    path.write_bytes(damage(path.read_bytes()))
    refused(path, ArchiveError, "damaged|neither a zip nor a tar")


@pytest.mark.parametrize(
    ("content", "reason"), [(b"<!DOCTYPE html>", "web page"), (b"", "empty"), (b"GIF89a....", "begins with b'GIF89a")]
)
def test_what_is_no_archive_is_described(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "a.zip"
    path.write_bytes(content)
    assert not is_archive(path)
    refused(path, ArchiveError, reason)


def test_a_zip_with_a_password_is_refused(tmp_path: Path) -> None:
    refused(make_zip(tmp_path / "a.zip", ("a", b"1"), encrypted=True), ArchiveError, "password")


def test_an_existing_folder_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_bytes(b"mine")
    with pytest.raises(FileExistsError):
        unpack(make_zip(tmp_path / "a.zip", ("mine", b"yours")), tmp_path / "out")
    assert tree(tmp_path / "out") == {"mine": b"mine"}
