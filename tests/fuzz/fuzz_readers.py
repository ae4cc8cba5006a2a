"""Fuzz one reader with coverage guidance for a given time (pip install atheris); pytest does not collect this file.

    python -m tests.fuzz.fuzz_readers READER FOLDER -max_total_time=60

The arguments after FOLDER are libFuzzer's. FOLDER gets seeds (good files) if it is empty, and then every input that
reaches new code. A reader may return, or refuse with its own error; anything else stops and leaves a `crash-*` file.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import pickle
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import atheris

with atheris.instrument_imports(
    include=["dassl.config", "dassl.utils", "common", "datasets", "results", "prompting", "reporting", "yaml", "PIL"]
):
    from common.files import DAMAGED_ARCHIVE
    from common.unpickling import CheckpointError, read_checkpoint
    from dassl.config import YamlFileError, read_yaml
    from dassl.utils import CheckpointError as EngineError
    from dassl.utils import UnreadableImageError, load_checkpoint, read_image
    from datasets.__main__ import read_pickle
    from datasets.fewshot import SelectionError, load_selection
    from datasets.splits import SplitFileError, check_classes, parse_entries
    from datasets.unpack import ArchiveError, Limits, unpack
    from prompting.weight_files import BackboneError, read_state_dict
    from results.features import read_features
    from results.schema import ResultsError, read_results


import numpy as np
import torch
from PIL import Image

ASSETS = Path(__file__).parents[2] / "assets"
SPLIT = {part: [["a.png", 0, "cat"], ["b.png", 1, "dog"]] for part in ("train", "val", "test")}


@dataclass(frozen=True)
class Reader:
    """What is fuzzed.

    Attributes:
        read: takes a file's path.
        refusals: what it may raise.
        seeds: contents of good files.
    """

    read: Callable[[Path], Any]
    refusals: tuple[type[Exception], ...]
    seeds: Callable[[], Iterable[bytes]]


def read_split(path: Path) -> None:
    """A split file, and its labels."""
    check_classes(parse_entries(path.read_bytes(), str(path)), str(path))


def read_archive(path: Path) -> None:
    """An archive, of which nothing may come out beside the folder."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            unpack(path, Path(folder, "inside"), Limits(total=1 << 20, entries=1000))
        finally:
            assert set(os.listdir(folder)) <= {"inside"}


def json_seed() -> Iterable[bytes]:
    """A split, a selection, and a record that is no run's."""
    yield json.dumps(SPLIT).encode()
    yield json.dumps({"format": 1, "train": SPLIT["train"], "val": SPLIT["val"]}).encode()
    yield json.dumps({"schema_version": 1, "status": "finished", "metrics": {"all": {"accuracy": 1.5}}}).encode()


def yaml_seed() -> Iterable[bytes]:
    """The shipped configurations."""
    return (path.read_bytes() for path in sorted((ASSETS.parent / "configs").rglob("*.yaml"))[:40])


def checkpoint_seed() -> Iterable[bytes]:
    """A checkpoint of plain values, and one with an object in it, in the new and the old form."""
    for extra in (None, Limits()):
        for new in (True, False):
            buffer = io.BytesIO()
            content = {"state_dict": {"ctx": torch.ones(2, 3)}, "epoch": 1, "scheduler": extra}
            torch.save(content, buffer, _use_new_zipfile_serialization=new)
            yield buffer.getvalue()


def torchscript_seed() -> Iterable[bytes]:
    """A module, compiled."""
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 3)), buffer)
    yield buffer.getvalue()


def pickle_seed() -> Iterable[bytes]:
    """The opcodes of a selection of CoOp's, in the oldest and the newest protocol."""
    record = b"cdassl.data.datasets.base_dataset\nDatum\n)\x81}(X\x07\x00\x00\x00_impathX\x05\x00\x00\x00a.png"
    record += (
        b"X\x06\x00\x00\x00_labelK\x00X\x07\x00\x00\x00_domainK\x00X\x0a\x00\x00\x00_classnameX\x03\x00\x00\x00catub"
    )
    yield b"\x80\x02}X\x05\x00\x00\x00train](" + record + b"es."
    yield pickle.dumps({"train": [], "val": []})


def archive_seed() -> Iterable[bytes]:
    """A zip file and tar files with a file, a folder and a link."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("folder/a.txt", "text")
    yield buffer.getvalue()
    for mode in ("w", "w:gz", "w:bz2", "w:xz"):
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode=mode) as file:
            member = tarfile.TarInfo("folder/a.txt")
            member.size = 4
            file.addfile(member, io.BytesIO(b"text"))
            link = tarfile.TarInfo("folder/b.txt")
            link.type, link.linkname = tarfile.SYMTYPE, "a.txt"
            file.addfile(link)
        yield buffer.getvalue()


def image_seed() -> Iterable[bytes]:
    """One small image per format."""
    image = Image.fromarray(np.arange(192, dtype=np.uint8).reshape(8, 8, 3))
    for form in ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM"):
        buffer = io.BytesIO()
        image.save(buffer, form)
        yield buffer.getvalue()


def features_seed() -> Iterable[bytes]:
    """Features of two images."""
    buffer = io.BytesIO()
    arrays = {"images": np.zeros((2, 16), np.uint8), "features": np.zeros((2, 3), np.float32)}
    np.savez(buffer, context=np.frombuffer(b"c", np.uint8), **arrays)
    yield buffer.getvalue()


READERS = {
    "checkpoint": Reader(read_checkpoint, (CheckpointError,), checkpoint_seed),
    "engine_checkpoint": Reader(load_checkpoint, (EngineError,), checkpoint_seed),
    "torchscript": Reader(read_state_dict, (BackboneError,), torchscript_seed),
    "split": Reader(read_split, (SplitFileError,), json_seed),
    "selection": Reader(lambda path: load_selection(str(path)), (SelectionError,), json_seed),
    "results": Reader(read_results, (ResultsError,), json_seed),
    "yaml": Reader(read_yaml, (YamlFileError,), yaml_seed),
    "pickle": Reader(lambda path: read_pickle(str(path)), (SelectionError,), pickle_seed),
    "archive": Reader(read_archive, (ArchiveError,), archive_seed),
    "image": Reader(read_image, (UnreadableImageError,), image_seed),
    "features": Reader(lambda path: read_features(path, "c"), DAMAGED_ARCHIVE, features_seed),
}


def main() -> None:
    """Fuzz the reader that the command line names."""
    if len(sys.argv) < 3 or sys.argv[1] not in READERS:
        sys.exit(f"usage: python -m tests.fuzz.fuzz_readers {{{','.join(READERS)}}} FOLDER [LIBFUZZER OPTIONS]")
    reader, folder = READERS[sys.argv[1]], Path(sys.argv[2])
    folder.mkdir(parents=True, exist_ok=True)
    if not any(folder.iterdir()):
        for number, seed in enumerate(reader.seeds()):
            (folder / f"seed-{number}").write_bytes(seed)
    path = Path(tempfile.mkdtemp()) / "file"

    def one(content: bytes) -> None:
        path.write_bytes(content)
        with contextlib.suppress(reader.refusals):
            reader.read(path)

    atheris.Setup([sys.argv[0], str(folder), "-rss_limit_mb=4096", *sys.argv[3:]], one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
