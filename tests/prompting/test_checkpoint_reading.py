"""Reading checkpoint files: tensors come out as they went in, and nothing that a file says is ever done."""

import os
import pickle
import zipfile
from collections import OrderedDict, defaultdict
from pathlib import Path

import numpy as np
import pytest
import torch

from common.unpickling import CheckpointError, Inert, read_checkpoint

MARKER = "executed"


def touch_marker(*_args, **_kwargs):
    with open(MARKER, "w", encoding="utf-8"):
        pass


class CallsReduce:
    """REDUCE with a function of another module."""

    def __reduce__(self):
        return os.makedirs, (MARKER, 0o777, True)


class CallsEval:
    """REDUCE with a built-in that runs text."""

    def __reduce__(self):
        return eval, (f"open({MARKER!r}, 'w')",)


class SetsState:
    """NEWOBJ, then BUILD through a ``__setstate__`` of its own."""

    def __getstate__(self):
        return {"step": 3}

    __setstate__ = touch_marker


class MakesNew:
    """NEWOBJ through a ``__new__`` of its own."""

    def __new__(cls, *args):
        if args:
            touch_marker()
        return super().__new__(cls)

    def __getnewargs__(self):
        return ("again",)


class Fills(defaultdict):
    """REDUCE, SETITEMS: a container whose filling does something."""

    def __setitem__(self, key, value):
        super().__setitem__(key, value)
        touch_marker()


class Extends(list):
    """NEWOBJ, APPENDS: a list whose filling does something."""

    def extend(self, values):
        touch_marker()

    append = extend


def state_dict():
    base = torch.arange(12, dtype=torch.float32)
    return OrderedDict(
        ctx=base.reshape(3, 4), view=base.reshape(3, 4).t()[1:3], half=torch.ones(2).half(), empty=torch.zeros(0, 4)
    )


def published(extra):
    """A checkpoint as upstream's engine writes it: pickled objects beside the tensors."""
    return {"state_dict": state_dict(), "epoch": 5, "scheduler": {"successor": extra}, "val_result": np.float64(81.5)}


def insert_opcodes(path, opcodes):
    """Put pickle opcodes in front of a checkpoint's own, their result thrown away."""
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in entries.items():
            archive.writestr(name, data[:2] + opcodes + b"0" + data[2:] if name.endswith("/data.pkl") else data)


def check_tensors(content):
    expected = state_dict()
    assert list(content["state_dict"]) == list(expected)
    for name, value in expected.items():
        assert content["state_dict"][name].dtype == value.dtype
        assert torch.equal(content["state_dict"][name], value), name
    assert content["epoch"] == 5


@pytest.fixture(autouse=True)
def empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


HOSTILE = {
    "reduce": CallsReduce,
    "eval": CallsEval,
    "build": SetsState,
    "newobj": MakesNew,
    "setitems": lambda: Fills(None, a=1, b=2),
    "appends": lambda: Extends([1, 2]),
    "key": lambda: {CallsReduce(): 1},
    "nested": lambda: [{"a": (CallsReduce(), [CallsReduce()])}],
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_objects_in_a_file_are_not_made(kind):
    torch.save(published(HOSTILE[kind]()), "file")
    torch.load("file", weights_only=False)
    assert os.path.exists(MARKER)  # the file is armed
    os.rmdir(MARKER) if os.path.isdir(MARKER) else os.remove(MARKER)
    check_tensors(read_checkpoint("file"))
    assert not os.path.exists(MARKER)


OPCODES = {
    "GLOBAL, REDUCE": b"cos\nmkdir\n(S'executed'\ntR",
    "INST": b"(S'executed'\nios\nmkdir\n",
    "OBJ": b"(cos\nmkdir\nS'executed'\no",
    "STACK_GLOBAL": b"\x8c\x02os\x8c\x05mkdir\x93(S'executed'\ntR",
    "dotted STACK_GLOBAL": b"\x8c\x07pathlib\x8c\x0aPath.mkdir\x93(cpathlib\nPath\n(S'executed'\ntRtR",
    "called getattr": b"cbuiltins\ngetattr\n(cos\nenviron\nS'get'\ntR(S'PATH'\ntR0cos\nmkdir\n(S'executed'\ntR",
    "allowed module, other name": b"ctorch._utils\n_import_dotted_name\n(S'os.mkdir'\ntR(S'executed'\ntR",
}


@pytest.mark.parametrize("kind", OPCODES)
def test_opcodes_call_nothing(kind):
    try:
        pickle.loads(b"\x80\x04" + OPCODES[kind] + b".")
    except TypeError:
        assert kind == "OBJ"  # the plain unpickler instantiates classes only
    else:
        assert os.path.isdir(MARKER)
        os.rmdir(MARKER)
    torch.save(published(None), "file")
    insert_opcodes("file", OPCODES[kind])
    check_tensors(read_checkpoint("file"))
    assert not os.path.exists(MARKER)


# BUILD on what makes tensors: to make something else from then on, or to bear another name
REBUILDS = {"other function": b"(ccollections\nOrderedDict\n)}Ntb", "attribute": b"N}S'__name__'\nS'x'\ns\x86b"}


@pytest.mark.parametrize("kind", REBUILDS)
def test_a_file_cannot_change_how_the_next_is_read(kind):
    torch.save(published(None), "good")
    torch.save(published(None), "bad")
    insert_opcodes("bad", b"ctorch._utils\n_rebuild_tensor_v2\n" + REBUILDS[kind])
    with pytest.raises(CheckpointError, match="bad"):
        read_checkpoint("bad")
    check_tensors(read_checkpoint("good"))


def test_schedulers_optimisers_and_parameters_of_published_code():
    parameter = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.SGD([parameter], lr=0.1, momentum=0.9)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 5)
    content = published(schedule) | {"optimizer": optimizer.state_dict()}
    content["state_dict"]["parameter"] = parameter
    torch.save(content, "file")
    read = read_checkpoint("file")
    assert torch.equal(read["state_dict"].pop("parameter"), torch.ones(3))
    check_tensors(read)
    assert isinstance(read["scheduler"]["successor"], Inert)
    assert "CosineAnnealingLR" in repr(read["scheduler"]["successor"])
    assert isinstance(read["val_result"], Inert)
    assert read["optimizer"]["param_groups"][0]["lr"] == 0.1


def test_tensors_saved_on_a_gpu_come_to_the_cpu():
    torch.save(published(CallsReduce()), "file")
    with zipfile.ZipFile("file") as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile("file", "w") as archive:
        for name, data in entries.items():
            archive.writestr(name, data.replace(b"X\x03\x00\x00\x00cpu", b"X\x06\x00\x00\x00cuda:0"))
    check_tensors(read_checkpoint("file"))


def test_a_tensor_beyond_its_storage_is_refused():
    torch.save(published(CallsReduce()), "file")
    with zipfile.ZipFile("file") as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile("file", "w") as archive:
        for name, data in entries.items():
            archive.writestr(name, data[:8] if name.endswith("/data/0") else data)
    with pytest.raises(CheckpointError, match="file"):
        read_checkpoint("file")


@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize("kept", [0, 10, 400, 0.5, 0.9, -1])
def test_a_truncated_file_is_named(own, kept):
    torch.save(published(None) | {"val_result": None} if own else published(CallsReduce()), "cut.tar")
    data = Path("cut.tar").read_bytes()
    Path("cut.tar").write_bytes(data[: int(kept * len(data)) if isinstance(kept, float) else kept])
    with pytest.raises(CheckpointError, match=r'"cut\.tar" is not a checkpoint, or it is damaged or cut short'):
        read_checkpoint("cut.tar")


@pytest.mark.parametrize("content", [{"epoch": 3}, [1, 2], {"state_dict": {"ctx": 3}}, {"state_dict": {}}])
def test_a_file_without_tensors_is_named(content):
    torch.save(content, "other.pth")
    with pytest.raises(CheckpointError, match=r'"other\.pth" holds no "state_dict" of tensors'):
        read_checkpoint("other.pth")


def test_a_missing_file_is_named():
    with pytest.raises(FileNotFoundError, match=r"none\.pth"):
        read_checkpoint("none.pth")
