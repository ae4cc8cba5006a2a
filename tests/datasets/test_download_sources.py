"""The table of sources holds together, and says the same as the data set classes and the documentation."""

import re
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from dassl.data.datasets import DATASET_REGISTRY
from datasets.sources import Source, UnknownDatasetError, find_name, known_datasets, read_source, readable_size

DOCS = (Path(__file__).resolve().parents[2] / "docs" / "datasets.md").read_text(encoding="utf-8")
INFOS = list(known_datasets().values())
SOURCES = [(info, source) for info in INFOS for source in (*info.sources, *([info.bundle] if info.bundle else []))]
IDS = [f"{info.name}-{source.file}" for info, source in SOURCES]


@pytest.mark.parametrize(("info", "source"), SOURCES, ids=IDS)
def test_mirrors_are_well_formed(info, source: Source) -> None:
    assert source.mirrors
    assert len({mirror.url for mirror in source.mirrors}) == len(source.mirrors)
    for mirror in source.mirrors:
        if mirror.scheme == "gdrive":
            assert re.fullmatch(r"[\w-]{33}", mirror.rest)
        elif mirror.scheme != "root":
            assert mirror.scheme in ("http", "https")
            assert urlsplit(mirror.url).hostname
        assert mirror.size is None or mirror.size > 0
        assert mirror.sha256 is None or re.fullmatch("[0-9a-f]{64}", mirror.sha256)
        assert mirror.md5 is None or re.fullmatch("[0-9a-f]{32}", mirror.md5)


@pytest.mark.parametrize(("info", "source"), SOURCES, ids=IDS)
def test_what_comes_without_encryption_is_verified(info, source: Source) -> None:
    assert all(mirror.verified for mirror in source.mirrors if mirror.scheme == "http")


@pytest.mark.parametrize("info", INFOS, ids=lambda info: info.name)
def test_sources_provide_all_that_a_data_set_needs(info) -> None:
    provided = [name for source in info.sources for name in source.provides]
    assert len(provided) == len(set(provided))
    wanted = [path.partition("/")[0] for path, _ in info.folders if not info.by_hand] + (
        [info.split] if info.split else []
    )
    assert set(wanted) <= set(provided)
    assert len({source.file for source in info.sources}) == len(info.sources)
    assert [source.file for source in info.sources if source.split] == ([info.split] if info.split else [])
    assert all(len(source.provides) == 1 for source in info.sources if not source.archive)


def test_every_split_file_has_a_second_source() -> None:
    splits = [source for _, source in SOURCES if source.split]
    assert len(splits) == 9
    assert all({mirror.scheme for mirror in source.mirrors} == {"gdrive", "https"} for source in splits)
    assert sum(mirror.verified for source in splits for mirror in source.mirrors) == 9


@pytest.mark.parametrize("info", INFOS, ids=lambda info: info.name)
def test_the_table_agrees_with_the_data_set_class(info) -> None:
    dataset = DATASET_REGISTRY.get(info.name)
    assert (info.folder, info.split) == (dataset.dataset_dir, dataset.split_file)
    if dataset.image_folder:
        assert all(path.startswith((dataset.image_folder, "splits")) for path, _ in info.folders)


@pytest.mark.parametrize("info", INFOS, ids=lambda info: info.name)
def test_counts_add_up(info) -> None:
    if None not in info.counts:
        assert sum(info.counts) == info.images
    assert all(least <= max(info.images, info.classes) for _, least in info.folders)


@pytest.mark.parametrize("info", INFOS, ids=lambda info: info.name)
def test_the_documentation_has_a_row_for_each(info) -> None:
    row = next(line for line in DOCS.splitlines() if line.startswith(f"| {info.name} |"))
    for text in (f"{info.classes:,}", f"{info.images:,}", f"`{info.folder}/`", info.licence):
        assert text in row
    size = "by hand" if info.by_hand else readable_size(info.download_size)
    assert f"| {size} |" in row
    assert info.homepage.split()[0] in DOCS


SHIPPED = [
    name
    for name in DATASET_REGISTRY.registered_names()
    if DATASET_REGISTRY.get(name).__module__.startswith("datasets.")
]


@pytest.mark.parametrize("name", SHIPPED)
def test_the_documentation_names_every_data_set_that_is_here(name: str) -> None:
    assert name in DOCS or name.lower() in SHIPPED


def test_a_mirror_may_have_its_own_checksum() -> None:
    source = read_source(
        {"file": "a.zip", "size": 1, "md5": "m", "mirrors": ["https://x", {"url": "https://y", "size": 2}]}
    )
    assert [(mirror.size, mirror.md5) for mirror in source.mirrors] == [(1, "m"), (2, None)]
    assert source.archive


@pytest.mark.parametrize(
    ("typed", "meant"),
    [("Caltech101", "Caltech101"), ("caltech101", "Caltech101"), ("DTD", "DescribableTextures"), ("sun397", "SUN397")],
)
def test_names_are_found_in_any_case_and_by_folder(typed: str, meant: str) -> None:
    assert find_name(typed, list(known_datasets())) == meant


def test_unknown_names_get_the_nearest() -> None:
    with pytest.raises(UnknownDatasetError, match="Did you mean OxfordPets"):
        find_name("OxfordPet", list(known_datasets()))
    with pytest.raises(UnknownDatasetError, match="'xyzzy'. Known: Caltech101"):
        find_name("xyzzy", list(known_datasets()))


@pytest.mark.parametrize(
    ("size", "text"),
    [(None, "?"), (502, "502 B"), (1253959680, "1.3 GB"), (39_077_296_924, "39 GB"), (9_960, "10.0 kB")],
)
def test_sizes_are_readable(size: int | None, text: str) -> None:
    assert readable_size(size) == text
