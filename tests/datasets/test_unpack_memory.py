"""Archives whose headers, and not their files, would fill the memory or the disk."""

import gzip
import tarfile
import tracemalloc
from pathlib import Path

import pytest

from datasets.unpack import ArchiveError, Limits, UnsafeArchiveError, is_archive, unpack
from tests.datasets.test_download_unpack import make_tar, make_zip, member, refused

HEADERS = {
    "name": tarfile.GNUTYPE_LONGNAME,
    "link": tarfile.GNUTYPE_LONGLINK,
    "attributes": tarfile.XHDTYPE,
    "attributes of all": tarfile.XGLTYPE,
    "Solaris's attributes": tarfile.SOLARIS_XHDTYPE,
}


def long_header(path: Path, kind: bytes, size: int) -> Path:
    """A compressed tar file whose first header says that so many zeros follow, and which has them."""
    info = tarfile.TarInfo("header")
    info.type, info.size = kind, size
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(info.tobuf(tarfile.GNU_FORMAT))
        for _ in range(size >> 20):
            file.write(bytes(1 << 20))
    return path


@pytest.mark.parametrize("kind", HEADERS)
def test_a_long_header_is_not_read_into_memory(tmp_path: Path, kind: str) -> None:
    archive = long_header(tmp_path / "a.tgz", HEADERS[kind], 32 << 20)
    tracemalloc.start()
    assert is_archive(archive)
    refused(archive, UnsafeArchiveError, "a header of it takes 33,554,432 bytes")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 << 20


def test_names_of_honest_length_are_read(tmp_path: Path) -> None:
    name = "/".join(["folder" * 10] * 10) + "/1.jpg"
    unpack(make_tar(tmp_path / "a.tar", member(name, content=b"1")), tmp_path / "out")
    assert (tmp_path / "out" / name).read_bytes() == b"1"


def test_a_file_of_holes_is_stopped(tmp_path: Path) -> None:
    """A sparse file: a header that says a terabyte, of which none is in the archive."""
    info = tarfile.TarInfo("holes")
    info.type, info.size = tarfile.GNUTYPE_SPARSE, 0
    header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    header[483:495] = tarfile.itn(2**40, 12, tarfile.GNU_FORMAT)  # the size that it unpacks to
    header[148:156] = b"%06o\0 " % tarfile.calc_chksums(bytes(header))[0]
    (tmp_path / "a.tar").write_bytes(bytes(header) + bytes(10240 - len(header)))
    refused(tmp_path / "a.tar", UnsafeArchiveError, "100,000 bytes come out", Limits(unrated=100_000, ratio=1.0))


def test_an_entry_that_makes_many_folders_counts_for_as_many(tmp_path: Path) -> None:
    archive = make_tar(tmp_path / "a.tar", member("a/b/c/d/e/f", content=b"1"))
    refused(archive, UnsafeArchiveError, "too many entries", Limits(entries=5))
    assert unpack(archive, tmp_path / "out", Limits(entries=6)) == 1


def test_a_zip_compressed_in_an_unknown_way_is_refused(tmp_path: Path) -> None:
    archive = make_zip(tmp_path / "a.zip", ("a", b"1"))
    data = bytearray(archive.read_bytes())
    for signature, offset in ((b"PK\x03\x04", 8), (b"PK\x01\x02", 10)):
        data[data.index(signature) + offset] = 99
    archive.write_bytes(data)
    refused(archive, ArchiveError, "damaged: That compression method is not supported")
