"""Readers of files from strangers: whatever the bytes, they return or refuse with their own error."""

# ruff: noqa: PT017  what is refused must be named, but need not be refused
import bz2
import json
import struct
import tarfile
import zipfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from common.unpickling import CheckpointError, read_checkpoint
from dassl.config import YamlFileError, read_yaml
from dassl.utils import CheckpointError as EngineError
from dassl.utils import load_checkpoint
from datasets.__main__ import read_pickle
from datasets.fewshot import SelectionError, load_selection
from datasets.splits import SplitFileError, check_classes, parse_entries
from datasets.unpack import ArchiveError, Limits, is_archive, safe_name, unpack
from results.schema import ResultsError, read_results

SMALL = settings(
    max_examples=40,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from(["train", "val", "test"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["train", "val", "test", "x"]), inner),
    max_leaves=8,
)
ROW = st.tuples(st.text(max_size=4), st.integers(-2, 10**15) | st.text(max_size=3), st.text(max_size=3)).map(list)
SPLIT = st.fixed_dictionaries({part: st.lists(ROW, max_size=4) for part in ("train", "val", "test")})
ARCHIVES = st.sampled_from([b"", b"PK\x03\x04", b"PK\x05\x06" + bytes(18), b"\x1f\x8b\x08", b"BZh9", b"\xfd7zXZ\x00"])


@SMALL
@given(content=st.binary(max_size=60) | JSON.map(lambda data: json.dumps(data).encode()))
def test_split_files(content):
    try:
        parse_entries(content, "split.json")
    except SplitFileError as error:
        assert "split.json" in str(error)


@SMALL
@given(split=SPLIT)
def test_labels_of_split_files(split):
    try:
        entries = parse_entries(json.dumps(split).encode(), "split.json")
        names = check_classes(entries, "split.json")
    except SplitFileError as error:
        assert "split.json" in str(error)
    else:
        assert 0 < len(names) <= sum(map(len, entries.values()))


@SMALL
@given(content=st.binary(max_size=60) | JSON.map(lambda data: json.dumps(data).encode()))
def test_selections_and_results(tmp_path, content):
    path = tmp_path / "file.json"
    path.write_bytes(content)
    for read, refusal in ((load_selection, SelectionError), (read_results, ResultsError)):
        try:
            read(str(path))
        except refusal as error:
            assert "file.json" in str(error)


@SMALL
@given(content=st.binary(max_size=60).map(lambda data: b"\x80\x04" + data) | st.binary(max_size=60))
def test_pickled_selections(tmp_path, content):
    path = tmp_path / "shot_1-seed_1.pkl"
    path.write_bytes(content)
    try:
        read_pickle(str(path))
    except SelectionError as error:
        assert path.name in str(error)


@SMALL
@given(content=st.binary(max_size=60))
def test_checkpoints(tmp_path, content):
    path = tmp_path / "model.pth.tar-1"
    path.write_bytes(content)
    try:
        read_checkpoint(path)
    except CheckpointError as error:
        assert path.name in str(error)


@SMALL
@given(content=st.text(max_size=40).map(str.encode) | st.binary(max_size=40))
def test_yaml(tmp_path, content):
    path = tmp_path / "file.yaml"
    path.write_bytes(content)
    try:
        read_yaml(path)
    except YamlFileError as error:
        assert path.name in str(error)


@SMALL
@given(start=ARCHIVES, content=st.binary(max_size=600))
def test_archives(tmp_path, start, content):
    path, folder = tmp_path / "archive", tmp_path / "out"
    path.write_bytes(start + content)
    try:
        unpack(path, folder, Limits(total=10_000))
    except ArchiveError as error:
        assert str(path) in str(error)
        assert not folder.exists()
    else:
        folder.rmdir()  # an archive without entries


@SMALL
@given(name=st.text(alphabet="./\\ab:\0C", max_size=12))
def test_names_in_archives_stay_in_the_folder(name):
    try:
        safe = safe_name(name)
    except ArchiveError:
        return
    assert Path("/folder").joinpath(safe).resolve().is_relative_to("/folder")
    assert ".." not in Path(safe).parts


def test_an_archive_that_claims_several_disks(tmp_path):
    """Found by the fuzzer: asking zipfile whether such a file is an archive is an error of its own."""
    path = tmp_path / "archive.zip"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("a.txt", "text")
    content = path.read_bytes()
    locator = b"PK\x06\x07" + struct.pack("<IQI", 0, 0, 2)  # of 64-bit archives, just before the end record
    path.write_bytes(content[:-22] + locator + content[-22:])
    assert is_archive(path)
    with pytest.raises(ArchiveError, match="damaged"):
        unpack(path, tmp_path / "out")
    for read, refusal in ((load_checkpoint, EngineError), (read_checkpoint, CheckpointError)):
        with pytest.raises(refusal, match="damaged"):
            read(path)


def test_a_zip_entry_without_a_name(tmp_path):
    """Found by the fuzzer: zipfile looks at the last character of the name."""
    path = tmp_path / "archive.zip"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("Xa.txt", "text")
    path.write_bytes(path.read_bytes().replace(b"Xa.txt", b"\0a.txt"))  # a name ends at its first zero byte
    with pytest.raises(ArchiveError, match="damaged: an entry has no name"):
        unpack(path, tmp_path / "out")


def test_damage_behind_the_end_of_a_compressed_tar_file(tmp_path):
    """Found by the fuzzer: bz2's error is an OSError without a number."""
    path = tmp_path / "archive.tar.bz2"
    with tarfile.open(path, "w:bz2") as file:
        file.addfile(tarfile.TarInfo("a.txt"))
    padding = bytearray(bz2.compress(bytes(3 << 20)))
    padding[12] ^= 1  # in the checksum of its block
    path.write_bytes(path.read_bytes() + padding)
    with pytest.raises(ArchiveError, match="damaged: Invalid data stream"):
        unpack(path, tmp_path / "out")


def test_a_zip_entry_before_the_start_of_the_file(tmp_path):
    """Found by the fuzzer: zipfile seeks to a negative place, which is an OSError."""
    path = tmp_path / "archive.zip"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("a.txt", "text")
    content = bytearray(path.read_bytes())
    place = len(content) - 6  # of the directory's offset in the end record
    content[place : place + 4] = struct.pack("<I", struct.unpack_from("<I", content, place)[0] + 1000)
    path.write_bytes(content)
    with pytest.raises(ArchiveError, match="damaged"):
        unpack(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()
