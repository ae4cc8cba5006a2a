"""Files from strangers take memory in proportion to their size, and their fields are checked when they are read."""

import io
import pickle
import tracemalloc
import zipfile
from pathlib import Path

import pytest
import torch

from common.unpickling import CheckpointError, read_checkpoint
from dassl.utils import CheckpointError as EngineError
from dassl.utils import load_checkpoint
from datasets.__main__ import read_pickle
from datasets.fewshot import SelectionError
from prompting.checkpoint import main
from prompting.weight_files import BackboneError, read_state_dict

LIST = b"](" + b"K\1" * 20_000 + b"eq\0"  # 20,000 numbers, memorised as 0
PICKLES = {
    "empty dictionaries": b"}" * (4 << 20) + b".",
    "copies through REDUCE": LIST + b"ccollections\nCounter\nq\1" + b"0h\1h\0\x85R" * 20_000 + b".",
    "copies through BUILD": b"}q\0("
    + b"".join(b"M" + n.to_bytes(2, "little") + b"N" for n in range(20_000))
    + b"u"
    + b"ccollections\nOrderedDict\n)Rh\0b" * 20_000
    + b".",
    "stated length": b"\x96" + (1 << 40).to_bytes(8, "little") + b".",
    "bytearray of a number": b"c__builtin__\nbytearray\n\x8a\x06" + (1 << 40).to_bytes(6, "little") + b"\x85R.",
    "repeats": b"]q\0"
    + b"".join(b"](" + b"h" + bytes([n]) + (b"h" + bytes([n])) * 9 + b"eq" + bytes([n + 1]) for n in range(30))
    + b".",
}


def archived(pickled, compression):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        archive.writestr("archive/data.pkl", b"\x80\2" + pickled)
        archive.writestr("archive/version", b"3")
    return buffer.getvalue()


def legacy(pickled):
    start = [0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}]
    return b"".join(pickle.dumps(part, 2) for part in start) + b"\x80\2" + pickled + pickle.dumps([], 2)


FORMS = {
    "deflated": lambda pickled: archived(pickled, zipfile.ZIP_DEFLATED),
    "stored": lambda pickled: archived(pickled, zipfile.ZIP_STORED),
    "legacy": legacy,
    "plain": lambda pickled: b"\x80\2" + pickled,
}
READERS = {
    "checkpoint": (read_checkpoint, CheckpointError),
    "engine": (load_checkpoint, EngineError),
    "backbone": (lambda path: read_state_dict(Path(path)), BackboneError),
    "selection": (read_pickle, SelectionError),
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("kind", PICKLES)
def test_a_pickle_that_grows_is_refused(tmp_path, kind, reader):
    read, refusal = READERS[reader]
    for form in ["plain"] if reader == "selection" else ["deflated", "legacy"]:
        path = tmp_path / f"{form}.pth"
        path.write_bytes(FORMS[form](PICKLES[kind]))
        with pytest.raises(refusal, match=rf"{form}\.pth"):
            read(str(path))


def test_the_memory_of_a_refused_pickle(tmp_path):
    path = tmp_path / "file.pth"
    path.write_bytes(FORMS["stored"](PICKLES["empty dictionaries"]))
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError, match="more objects than a file of its size"):
            read_checkpoint(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 160 << 20


@pytest.mark.parametrize("engine", [False, True])
def test_files_of_old_pytorch_are_read(tmp_path, engine):
    content = {"state_dict": {"ctx": torch.arange(6.0).reshape(2, 3).t(), "n": torch.tensor(3)}, "epoch": 2}
    torch.save(content, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    read = (load_checkpoint if engine else read_checkpoint)(tmp_path / "old.pth")
    assert read["epoch"] == 2
    assert all(torch.equal(read["state_dict"][name], value) for name, value in content["state_dict"].items())


def good():
    return {
        "state_dict": {"ctx": torch.ones(4, 8)},
        "trainer": "CoOp",
        "epoch": 1,
        "classnames": ["cat"],
        "backbone": "RN50",
    }


FIELDS = {
    "classnames": [5, [1, 2], torch.arange(5), [""], ["x" * 1001]],
    "epoch": ["1", 1.5, True, -1],
    "val_result": [[1.0], "90"],
    "trainer": [{"a": 1}, 3],
    "backbone": [7, ["RN50"]],
    "optimizer": [3],
}
TENSORS = {
    "float8": lambda t: t.to(torch.float8_e4m3fn),
    "complex": lambda t: t.to(torch.complex64),
    "sparse": lambda t: t.to_sparse(),
    "meta": lambda t: t.to("meta"),
    "number": lambda t: 3,
}


@pytest.mark.parametrize(("field", "value"), [(field, value) for field, values in FIELDS.items() for value in values])
def test_a_field_of_another_kind_is_named(tmp_path, capsys, field, value):
    torch.save(good() | {field: value}, tmp_path / "odd.pth")
    assert main(["show", str(tmp_path / "odd.pth")]) == 1
    error = capsys.readouterr().err
    assert "odd.pth" in error and field in error and "Traceback" not in error  # noqa: PT018


@pytest.mark.parametrize("kind", TENSORS)
def test_a_tensor_of_another_kind_is_named(tmp_path, kind):
    content = good()
    content["state_dict"]["odd"] = TENSORS[kind](torch.ones(2, 2))
    torch.save(content, tmp_path / "odd.pth")
    with pytest.raises(CheckpointError, match=r"odd\.pth.*'odd'"):
        read_checkpoint(tmp_path / "odd.pth")


@pytest.mark.parametrize("missing", ["classnames", "backbone", "epoch", "trainer"])
def test_a_missing_field_is_no_error(tmp_path, missing):
    content = {key: value for key, value in good().items() if key != missing}
    torch.save(content, tmp_path / "file.pth")
    assert main(["show", str(tmp_path / "file.pth"), "--trainer", "CoOp"]) == 0


def test_show_prints_no_escapes(tmp_path, capsys):
    content = good() | {"backbone": "\x1b[2J"}
    content["state_dict"]["\x1b]0;x\x07"] = torch.ones(1)
    torch.save(content, tmp_path / "file.pth")
    assert main(["show", str(tmp_path / "file.pth")]) == 0
    assert "\x1b" not in capsys.readouterr().out
