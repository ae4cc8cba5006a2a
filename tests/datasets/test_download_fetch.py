"""Fetching one file from a server that cuts, corrupts, redirects, stalls, and changes its mind."""

import hashlib
import json
import shutil
from collections import namedtuple
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from datasets import fetch as fetching
from datasets.fetch import DownloadError, DownloadOptions, NoSpaceError, fetch
from datasets.sources import Mirror
from tests.datasets.web_server import Server, running_server

CONTENT = bytes(range(256)) * 2000  # 512,000 bytes: several reads
FAST = DownloadOptions(timeout=0.3, retries=2, pause=0.0, progress=False)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "*")
    with running_server() as running:
        yield running


def mirror_of(url: str, content: bytes = CONTENT, **changes: Any) -> Mirror:
    known = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    return Mirror(url, **(known | changes))


def get(tmp_path: Path, *mirrors: Mirror, options: DownloadOptions = FAST, **check: Callable[[Path], None]) -> bytes:
    path = tmp_path / "file.bin"
    fetch(mirrors, path, tmp_path, options, **check)
    return path.read_bytes()


def left(tmp_path: Path) -> list[str]:
    return sorted(path.name for path in tmp_path.iterdir())


@pytest.mark.parametrize("known", [{}, {"sha256": None}, {"size": None}, {"size": None, "sha256": None}])
def test_a_file_arrives_whole_and_nothing_else_is_left(server: Server, tmp_path: Path, known: dict[str, None]) -> None:
    assert get(tmp_path, mirror_of(server.add("/a", CONTENT), **known)) == CONTENT
    assert left(tmp_path) == ["file.bin"]
    assert server.ranges("/a") == [""]


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("md5", hashlib.md5(CONTENT).hexdigest()),
        ("git_blob", hashlib.sha1(b"blob %d\0" % len(CONTENT) + CONTENT).hexdigest()),  # as git hash-object prints it
    ],
)
def test_another_checksum_is_used_where_no_sha256_is_known(server, tmp_path: Path, kind: str, value: str) -> None:
    good = mirror_of(server.add("/a", CONTENT), sha256=None, **{kind: value})
    assert get(tmp_path, good) == CONTENT
    with pytest.raises(DownloadError, match=f"its {kind} is"):
        fetch([mirror_of(good.url, sha256=None, **{kind: "0" * len(value)})], tmp_path / "other", tmp_path, FAST)


def test_a_cut_connection_is_taken_up_where_it_broke(server: Server, tmp_path: Path) -> None:
    url = server.add("/a", CONTENT, tries=["cut 100000", "cut 50000", "cut 1"])
    assert get(tmp_path, mirror_of(url)) == CONTENT
    assert server.ranges("/a") == ["", "bytes=100000-", "bytes=150000-", "bytes=150001-"]
    assert left(tmp_path) == ["file.bin"]


def test_cuts_that_bring_something_do_not_count_as_failures(server: Server, tmp_path: Path) -> None:
    url = server.add("/a", CONTENT, tries=["cut 10"] * 12)
    assert get(tmp_path, mirror_of(url)) == CONTENT


def test_a_server_without_ranges_sends_the_whole_again(server: Server, tmp_path: Path) -> None:
    url = server.add("/a", CONTENT, ranges=False, tries=["cut 100000"])
    assert get(tmp_path, mirror_of(url)) == CONTENT
    assert server.ranges("/a") == ["", "bytes=100000-"]


def test_a_stalled_connection_is_given_up_and_taken_up_again(server: Server, tmp_path: Path) -> None:
    url = server.add("/a", CONTENT, tries=["stall 70000"])
    assert get(tmp_path, mirror_of(url)) == CONTENT
    assert server.ranges("/a") == ["", "bytes=70000-"]


def test_after_too_many_stalls_what_came_is_kept_for_the_next_time(server: Server, tmp_path: Path) -> None:
    url = server.add("/a", CONTENT, tries=["stall 70000", "stall 0", "stall 0", "stall 0"])
    with pytest.raises(DownloadError, match="stalled; given up after 3 tries without progress"):
        get(tmp_path, mirror_of(url))
    assert "file.bin" not in left(tmp_path)
    assert get(tmp_path, mirror_of(url)) == CONTENT
    assert server.ranges("/a")[-1] == "bytes=70000-"
    assert left(tmp_path) == ["file.bin"]


def test_a_busy_server_is_asked_again_but_a_missing_file_is_not(server: Server, tmp_path: Path) -> None:
    busy = server.add("/busy", CONTENT, tries=["status 503", "status 429"])
    assert get(tmp_path, mirror_of(busy)) == CONTENT
    with pytest.raises(DownloadError, match="404"):
        fetch([Mirror(server.url("/none"))], tmp_path / "other", tmp_path, FAST)
    assert len(server.ranges("/none")) == 1


def test_a_corrupted_file_is_dropped_and_the_next_mirror_taken(server: Server, tmp_path: Path) -> None:
    bad, good = server.add("/bad", CONTENT, tries=["flip 300000"]), server.add("/good", CONTENT)
    assert get(tmp_path, mirror_of(bad), mirror_of(good)) == CONTENT
    assert left(tmp_path) == ["file.bin"]


def test_when_all_mirrors_fail_each_reason_is_told_and_no_file_is_left(server: Server, tmp_path: Path) -> None:
    bad, none = server.add("/bad", CONTENT, tries=["flip 5"]), server.url("/none")
    with pytest.raises(DownloadError) as raised:
        get(tmp_path, mirror_of(bad), mirror_of(none))
    text = str(raised.value)
    assert f"{bad}: its sha256 is" in text
    assert f"{none}: the server answers 404" in text
    assert left(tmp_path) == []


def test_a_file_of_another_size_is_refused_before_it_is_fetched(server: Server, tmp_path: Path) -> None:
    url = server.add("/a", CONTENT + b"new", tries=["stall 0"])
    with pytest.raises(DownloadError, match="512,003 bytes instead of 512,000: another version"):
        get(tmp_path, mirror_of(url))
    assert left(tmp_path) == []


def test_a_server_that_does_not_stop_is_stopped(server: Server, tmp_path: Path) -> None:
    url = server.add("/a", CONTENT, length=False, tries=["more 200000"])
    with pytest.raises(DownloadError, match="sends more than"):
        get(tmp_path, mirror_of(url, sha256=None))
    assert "file.bin" not in left(tmp_path)


def test_a_file_that_changes_between_tries_is_never_mixed(server: Server, tmp_path: Path) -> None:
    url = server.add("/a", CONTENT, tag='"one"', tries=["cut 100000", "cut 0"])
    other = CONTENT[::-1]
    with pytest.raises(DownloadError):
        get(tmp_path, mirror_of(url, size=None, sha256=None), options=DownloadOptions(0.3, 0, 0.0, False))
    server.pages["/a"].content, server.pages["/a"].tag = other, '"two"'
    assert get(tmp_path, mirror_of(url, size=None, sha256=None)) == other
    last = server.requests[-1][1]
    assert (last["Range"], last["If-Range"]) == ("bytes=100000-", '"one"')


def test_a_changed_length_is_noticed_where_the_server_ignores_the_condition(server: Server, tmp_path: Path) -> None:
    url = server.add("/a", CONTENT, modified="Mon, 01 Jan 2024 00:00:00 GMT", tries=["cut 100000", "cut 0"])
    with pytest.raises(DownloadError):
        get(tmp_path, mirror_of(url, size=None, sha256=None), options=DownloadOptions(0.3, 0, 0.0, False))
    server.pages["/a"].content = CONTENT[::-1] + b"longer"
    assert get(tmp_path, mirror_of(url, size=None, sha256=None)) == CONTENT[::-1] + b"longer"


def test_without_checksum_or_version_a_cut_file_is_fetched_anew(server: Server, tmp_path: Path) -> None:
    url = server.add("/a", CONTENT, tries=["cut 100000"])
    assert get(tmp_path, mirror_of(url, sha256=None)) == CONTENT
    assert server.ranges("/a") == ["", ""]


@pytest.mark.parametrize("tag", ['"strong"', 'W/"weak"'])
def test_only_a_strong_tag_identifies_a_version(server: Server, tmp_path: Path, tag: str) -> None:
    url = server.add("/a", CONTENT, tag=tag, tries=["cut 100000"])
    assert get(tmp_path, mirror_of(url, sha256=None)) == CONTENT
    assert server.ranges("/a") == ["", "bytes=100000-" if tag == '"strong"' else ""]


def test_a_part_that_is_longer_than_the_file_is_dropped(server: Server, tmp_path: Path) -> None:
    url = server.add("/a", CONTENT, tag='"one"', length=False, tries=["cut 100000"])
    mirror = mirror_of(url, size=None)
    with pytest.raises(DownloadError):  # cut without an announced length: only the checksum tells
        get(tmp_path, mirror)
    assert get(tmp_path, mirror) == CONTENT
    part = tmp_path / "file.bin"
    part.with_name("file.bin.json").write_text(json.dumps({"validator": '"one"', "total": None}))
    part.write_bytes(CONTENT + b"rest")
    with pytest.raises(fetching.BrokenTransferError, match="416"):
        fetching.transfer(mirror, part, FAST)
    assert not part.exists()


def test_redirects_are_followed_with_the_range(server: Server, tmp_path: Path) -> None:
    server.add("/real", CONTENT, tries=["cut 9000"])
    url = server.add("/a", redirect="/real")
    assert get(tmp_path, mirror_of(url)) == CONTENT
    assert server.ranges("/real") == ["", "bytes=9000-"]


@pytest.mark.parametrize("target", ["file:///etc/passwd", "ftp://127.0.0.1/x", "/a"])
def test_redirects_to_elsewhere_or_in_circles_are_refused(server: Server, tmp_path: Path, target: str) -> None:
    url = server.add("/a", redirect=target)
    with pytest.raises(DownloadError, match="(?i)redirect"):
        get(tmp_path, mirror_of(url))
    assert "file.bin" not in left(tmp_path)


def test_content_that_is_not_what_it_should_be_is_dropped(server: Server, tmp_path: Path) -> None:
    def refuse(path: Path) -> None:
        raise ValueError(f"{path.stat().st_size} bytes of nonsense")

    with pytest.raises(DownloadError, match="512000 bytes of nonsense"):
        get(tmp_path, mirror_of(server.add("/a", CONTENT)), check=refuse)
    assert left(tmp_path) == []


def test_a_disk_that_is_too_small_stops_before_the_transfer(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage(10**6, 10**6 - 1000, 1000))
    with pytest.raises(NoSpaceError, match="1.0 kB free, 512 kB are needed"):
        get(tmp_path, mirror_of(server.add("/a", CONTENT)))
    assert left(tmp_path) == []


def test_nobody_listens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "*")
    with running_server() as gone:
        url = gone.url("/a")
    with pytest.raises(DownloadError, match=r"no connection \(\[Errno \d+\] Connection refused\)"):
        get(tmp_path, mirror_of(url))


def test_a_file_under_the_data_root_is_copied(tmp_path: Path) -> None:
    (tmp_path / "imagenet").mkdir()
    (tmp_path / "imagenet" / "classnames.txt").write_bytes(b"n01 tench")
    assert get(tmp_path, Mirror("root:none/classnames.txt"), Mirror("root:imagenet/classnames.txt")) == b"n01 tench"
    assert (tmp_path / "imagenet" / "classnames.txt").read_bytes() == b"n01 tench"


class Drive:
    """Stands in for gdown."""

    def __init__(self, content: bytes | Exception | None) -> None:
        self.content = content
        self.asked: list[dict[str, Any]] = []

    def download(self, **asked: Any) -> str | None:
        self.asked.append(asked)
        if isinstance(self.content, Exception):
            raise self.content
        if self.content is None:
            return None
        Path(asked["output"]).write_bytes(self.content)
        return asked["output"]


def test_google_drive_goes_through_gdown_and_is_verified(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import gdown

    drive = Drive(CONTENT)
    monkeypatch.setattr(gdown, "download", drive.download)
    assert get(tmp_path, mirror_of("gdrive:abc123")) == CONTENT
    assert drive.asked[0]["id"] == "abc123"
    assert drive.asked[0]["resume"]
    assert (drive.asked[0]["timeout"], drive.asked[0]["retries"]) == (FAST.timeout, FAST.retries)
    assert left(tmp_path) == ["file.bin"]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (RuntimeError("Too many users\nhave viewed"), "Too many users have viewed"),
        (None, "gave no file"),
        (b"<html>quota</html>", "18 bytes instead of"),
    ],
)
def test_google_drive_refusing_is_told_with_the_link(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes | Exception | None, reason: str
) -> None:
    import gdown

    monkeypatch.setattr(gdown, "download", Drive(content).download)
    with pytest.raises(DownloadError, match=reason) as raised:
        get(tmp_path, mirror_of("gdrive:abc123"))
    assert "https://drive.google.com/file/d/abc123/view" in str(raised.value)
    assert left(tmp_path) == []
