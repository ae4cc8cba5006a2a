"""Downloading whole data sets from a server on this machine."""

import dataclasses
import hashlib
import io
import json
import os
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from datasets import fetch as downloading
from datasets.fetch import DownloadError, DownloadOptions, describe_plan, download
from datasets.sources import DatasetInfo, Mirror, Source
from datasets.splits import DataRootError
from tests.datasets.web_server import Server, running_server

FAST = {"timeout": 0.3, "retries": 0, "pause": 0.0, "progress": False}
SPLIT = {"train": [["a/1.jpg", 0, "a"], ["b/1.jpg", 1, "b"]], "val": [], "test": [["a/2.jpg", 0, "a"]]}
IMAGES = {"pic/a/1.jpg": b"1", "pic/a/2.jpg": b"2", "pic/b/1.jpg": b"3", "README": b"read me"}
SPLIT_BYTES = json.dumps(SPLIT).encode()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "*")
    with running_server() as running:
        yield running


def tar_of(files: dict[str, bytes], top: str = "") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as file:
        for name, content in files.items():
            info = tarfile.TarInfo(top + name)
            info.size = len(content)
            file.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def zip_of(files: dict[str, bytes], top: str = "") -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for name, content in files.items():
            file.writestr(top + name, content)
    return buffer.getvalue()


def source_of(url: str, content: bytes, file: str, *provides: str, **options: Any) -> Source:
    mirror = Mirror(url, len(content), hashlib.sha256(content).hexdigest())
    return Source(file, (mirror,), provides, **options)


class Shop:
    """A small data set on the server: an archive of images, a split file, and optional annotations."""

    def __init__(self, server: Server, root: Path) -> None:
        self.server, self.root, self.folder = server, root, root / "toys"
        self.archive = tar_of(IMAGES)
        images = source_of(server.add("/images.tgz", self.archive), self.archive, "images.tgz", "pic")
        split = Source("split.json", (Mirror(server.add("/split", SPLIT_BYTES)),), ("split.json",), False, True)
        notes = source_of(
            server.add("/notes", b"n"), b"n", "notes.mat", "notes.mat", archive=False, optional="a new split"
        )
        self.info = DatasetInfo(
            "Toys", "toys", 2, 3, (2, 0, 1), "none", "", (("pic", 2),), "split.json", (images, split, notes)
        )
        self.said: list[str] = []

    def change(self, index: int, **changes: Any) -> None:
        """Change one source of the data set."""
        sources = list(self.info.sources)
        sources[index] = dataclasses.replace(sources[index], **changes)
        self.info = dataclasses.replace(self.info, sources=tuple(sources))

    def download(self, **options: Any) -> bool:
        return download(self.info, str(self.root), DownloadOptions(**FAST, say=self.said.append, **options))

    def asked(self) -> list[str]:
        return [path for path, _ in self.server.requests]

    def there(self) -> dict[str, bytes]:
        return {
            path.relative_to(self.folder).as_posix(): path.read_bytes()
            for path in self.folder.rglob("*")
            if path.is_file()
        }


COMPLETE = IMAGES | {"split.json": SPLIT_BYTES, "notes.mat": b"n"}


@pytest.fixture
def shop(server: Server, tmp_path: Path) -> Shop:
    return Shop(server, tmp_path / "data")


def test_everything_arrives_in_place_and_nothing_is_left_over(shop: Shop) -> None:
    assert shop.download()
    assert shop.there() == COMPLETE
    assert not (shop.folder / ".download").exists()
    assert any("python -m datasets check Toys" in line for line in shop.said)


def test_what_is_there_is_not_fetched_again(shop: Shop) -> None:
    shop.download()
    shop.server.requests.clear()
    assert shop.download()
    assert shop.asked() == []
    assert sum("stays as it is" in line for line in shop.said) == 3


def test_an_archive_that_a_killed_download_left_behind_is_removed(shop: Shop) -> None:
    """Found by the long form of tests/faults: the content was in place, the archive not removed yet."""
    shop.download()
    bundle_of(shop, b"")
    (shop.folder / ".download").mkdir()
    for name in ("images.tgz", "bundle.zip", "images.tgz.part-1"):
        (shop.folder / ".download" / name).write_bytes(b"left")
    assert shop.download()
    assert shop.there() == COMPLETE
    assert not (shop.folder / ".download").exists()


def test_what_the_user_has_is_never_touched(shop: Shop) -> None:
    (shop.folder / "pic").mkdir(parents=True)
    (shop.folder / "pic" / "mine.jpg").write_bytes(b"mine")
    (shop.folder / "split.json").write_bytes(b"my split")
    before = (shop.folder / "pic").stat().st_mtime_ns
    assert shop.download()
    assert shop.there() == {"pic/mine.jpg": b"mine", "split.json": b"my split", "notes.mat": b"n"}
    assert (shop.folder / "pic").stat().st_mtime_ns == before
    assert shop.asked() == ["/notes"]


def test_of_an_archive_only_what_is_missing_is_added(shop: Shop) -> None:
    shop.folder.mkdir(parents=True)
    (shop.folder / "README").write_bytes(b"mine")
    assert shop.download()
    assert shop.there() == COMPLETE | {"README": b"mine"}


def test_links_of_the_user_count_as_there(shop: Shop, tmp_path: Path) -> None:
    shop.folder.mkdir(parents=True)
    (shop.folder / "pic").symlink_to(tmp_path / "elsewhere")
    shop.download()
    assert (shop.folder / "pic").is_symlink()
    assert "/images.tgz" not in shop.asked()


def test_the_folder_itself_may_be_a_link_to_another_disk(shop: Shop, tmp_path: Path) -> None:
    (tmp_path / "big").mkdir()
    shop.root.mkdir()
    shop.folder.symlink_to(tmp_path / "big")
    assert shop.download()
    assert (tmp_path / "big" / "pic" / "a" / "1.jpg").read_bytes() == b"1"


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (b"<html>gone</html>", "web page"),
        (tar_of({"other/1.jpg": b"1"}), "should hold pic but holds other"),
        (tar_of({"pic/../../evil": b"1"}), "outside the folder"),
        (tar_of(IMAGES)[:-30], "damaged"),
    ],
)
def test_a_bad_archive_changes_nothing(shop: Shop, bad: bytes, reason: str) -> None:
    shop.change(0, mirrors=(Mirror(shop.server.add("/bad", bad)),))
    assert not shop.download()
    assert any(reason in line and "images.tgz is missing" in line for line in shop.said)
    assert {name for name in shop.there() if not name.startswith(".download")} == {"split.json", "notes.mat"}
    assert not list(shop.folder.glob("**/*.unpacked"))
    assert not (shop.root / "evil").exists()


def test_a_damaged_archive_is_fetched_anew_the_next_time(shop: Shop) -> None:
    url = shop.server.add("/images.tgz", shop.archive[:-30])
    shop.change(0, mirrors=(Mirror(url),))
    assert not shop.download()
    shop.server.pages["/images.tgz"].content = shop.archive
    assert shop.download()
    assert shop.there() == COMPLETE


def test_an_interrupted_transfer_is_taken_up_by_the_next_command(shop: Shop) -> None:
    shop.server.pages["/images.tgz"].tries = ["cut 40", "cut 0"]
    assert not shop.download()
    assert "pic" not in os.listdir(shop.folder)
    assert shop.download()
    assert shop.server.ranges("/images.tgz")[-1] == "bytes=40-"
    assert shop.there() == COMPLETE


def test_an_interrupted_unpacking_starts_again_without_fetching(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*arguments: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(downloading, "place", interrupt)
        with pytest.raises(KeyboardInterrupt):
            shop.download()
    assert "pic" not in os.listdir(shop.folder)
    shop.server.requests.clear()
    assert shop.download()
    assert "/images.tgz" not in shop.asked()
    assert shop.there() == COMPLETE


def test_an_interruption_between_moves_is_completed(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    moved = []

    def move_once(source: str, target: str) -> None:
        if moved:
            raise KeyboardInterrupt
        moved.append(target)
        os.replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", move_once)
        with pytest.raises(KeyboardInterrupt):
            shop.download()
    assert [path.name for path in moved] == ["README"], "what tells that all is there comes last"
    assert shop.download()
    assert shop.there() == COMPLETE


def test_the_next_mirror_helps(shop: Shop) -> None:
    good = shop.info.sources[0].mirrors[0]
    shop.change(0, mirrors=(Mirror(shop.server.url("/dead")), good))
    assert shop.download()
    assert shop.asked()[:2] == ["/dead", "/images.tgz"]


@pytest.mark.parametrize(
    "content",
    [
        b"<html>Google Drive - quota exceeded</html>",
        b'{"train": [["a/1.jpg", 0, "a"]], "val": [], "test": [["x", 0, "a"]]}',
    ],
)
def test_a_split_file_is_verified_by_its_content(shop: Shop, content: bytes) -> None:
    shop.server.pages["/split"].content = content
    assert not shop.download()
    assert not (shop.folder / "split.json").exists()
    assert any("split.json is missing" in line for line in shop.said)


def test_an_unverified_file_is_called_so(shop: Shop) -> None:
    shop.change(0, mirrors=(Mirror(shop.info.sources[0].mirrors[0].url),))
    assert shop.download()
    assert any("images.tgz was not verified: no checksum is known" in line for line in shop.said)


def test_an_optional_file_that_cannot_be_had_is_no_failure(shop: Shop) -> None:
    del shop.server.pages["/notes"]
    assert shop.download()
    assert any("only needed for a new split" in line for line in shop.said)


def test_what_cannot_be_had_comes_with_what_to_do_by_hand(shop: Shop) -> None:
    bundle_of(shop, tar_of({"other": b""}))
    for path in ("/images.tgz", "/split", "/notes"):
        del shop.server.pages[path]
    assert not shop.download()
    text = "\n".join(shop.said)
    server = shop.server
    assert f"By hand: download {server.url('/images.tgz')} and unpack it so that {shop.folder} has pic" in text
    assert f"By hand: save {server.url('/split')} as {shop.folder}/split.json" in text
    assert text.count(f"{server.url('/split')}: the server answers 404") == 1
    assert [path.name for path in shop.folder.iterdir()] == [".download"], (
        "the bundle with another layout is kept aside"
    )
    assert text.count("no help from the bundle. bundle.zip should hold pic, split.json but holds other") == 1


@pytest.mark.parametrize("mine", [True, False])
def test_a_folder_that_nothing_came_into_is_removed_again(shop: Shop, mine: bool) -> None:
    shop.server.pages.clear()
    if mine:
        shop.folder.mkdir(parents=True)
    assert not shop.download()
    assert shop.folder.exists() == mine


def bundle_of(shop: Shop, content: bytes) -> None:
    bundle = dataclasses.replace(source_of(shop.server.add("/bundle", content), content, "bundle.zip"), inside="toys")
    shop.info = dataclasses.replace(shop.info, bundle=bundle)


def test_a_bundle_stands_in_for_an_archive_that_is_gone(shop: Shop) -> None:
    extra = {"split_fewshot/shot_1-seed_1.pkl": b"cos\nsystem", "split.json": SPLIT_BYTES}
    bundle_of(shop, zip_of(IMAGES | extra, top="toys/"))
    del shop.server.pages["/images.tgz"]
    assert shop.download()
    expected = COMPLETE.copy()
    del expected["README"]
    assert shop.there() == expected, "of a bundle only what is missing is taken"


def test_the_bundle_can_be_asked_for(shop: Shop) -> None:
    bundle_of(shop, zip_of(IMAGES | {"split.json": SPLIT_BYTES}, top="toys/"))
    assert shop.download(bundle=True)
    assert shop.asked() == ["/bundle"]


def test_no_bundle_is_fetched_for_a_split_file_alone(shop: Shop) -> None:
    bundle_of(shop, zip_of(IMAGES, top="toys/"))
    del shop.server.pages["/split"]
    assert not shop.download()
    assert "/bundle" not in shop.asked()


def test_an_archive_in_an_archive(shop: Shop) -> None:
    outer = zip_of({"box/images.tar.gz": tar_of(IMAGES), "box/other.txt": b"", "__MACOSX/x": b""})
    source = source_of(shop.server.add("/outer", outer), outer, "outer.zip", "pic", nested="box/images.tar.gz")
    shop.info = dataclasses.replace(shop.info, sources=(source, *shop.info.sources[1:]))
    assert shop.download()
    assert shop.there() == COMPLETE


@pytest.mark.parametrize(
    ("top", "options", "provides"),
    [
        ("data/", {"inside": "data"}, "pic"),
        ("v1/data/", {"inside": "v1/data"}, "pic"),
        ("", {"renames": (("pic", "images"),)}, "images"),
    ],
)
def test_folders_in_an_archive_get_their_place_and_name(
    shop: Shop, top: str, options: dict[str, Any], provides: str
) -> None:
    content = tar_of(IMAGES, top)
    source = source_of(shop.server.add("/moved", content), content, "moved.tgz", provides, **options)
    shop.info = dataclasses.replace(shop.info, sources=(source, *shop.info.sources[1:]), folders=((provides, 2),))
    assert shop.download()
    assert (shop.folder / provides / "a" / "1.jpg").read_bytes() == b"1"
    assert (shop.folder / "README").read_bytes() == b"read me"


def test_where_a_licence_forbids_it_says_what_to_do(shop: Shop) -> None:
    shop.info = dataclasses.replace(
        shop.info, sources=shop.info.sources[1:], by_hand="Register, then unpack into {folder}/pic"
    )
    assert not shop.download()
    assert f"Register, then unpack into {shop.folder}/pic" in shop.said
    (shop.folder / "pic").mkdir()
    assert shop.download()


def test_a_dry_run_writes_and_asks_nothing(shop: Shop) -> None:
    bundle_of(shop, b"")
    lines = "\n".join(describe_plan(shop.info, str(shop.root)))
    assert not shop.root.exists()
    assert shop.asked() == []
    assert f"images.tgz: {len(shop.archive)} B; adds pic" in lines
    assert f"sha256 {hashlib.sha256(shop.archive).hexdigest()}" in lines
    assert "verified by its classes and counts" in lines
    assert "needed for a new split" in lines
    assert "bundle.zip" in lines
    shop.download()
    assert "images.tgz: there already (pic)" in "\n".join(describe_plan(shop.info, str(shop.root)))


@pytest.mark.parametrize(
    ("place", "name"), [("data/toys/x", "data"), ("data/deep/toys", "deep"), ("data/Toys", "Toys")]
)
def test_a_root_that_is_one_level_off_is_refused(shop: Shop, place: str, name: str) -> None:
    folder = shop.root.parent / place
    folder.mkdir(parents=True)
    if place == "data/toys/x":
        shop.root = folder.parent
    with pytest.raises(DataRootError, match=name):
        shop.download()
    assert shop.asked() == []


def test_two_downloads_at_once_do_not_meet(shop: Shop) -> None:
    shop.folder.mkdir(parents=True)
    with downloading.staging(shop.folder), pytest.raises(DownloadError, match="another process"):
        shop.download()
    assert shop.asked() == []
    assert shop.download()
