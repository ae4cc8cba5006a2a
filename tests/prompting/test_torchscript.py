"""TorchScript archives are read past their code: the same tensors as torch.jit.load gives, and nothing that runs."""

import zipfile
from pathlib import Path

import pytest
import torch
from torch import nn

from prompting.weight_files import BackboneError, is_torchscript, read_state_dict
from tests.clips import random_clip

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")


class Tensors(nn.Module):
    """A parameter, buffers of several types, a shared module, and a tensor that is neither."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.register_buffer("count", torch.arange(3))
        self.register_buffer("strided", torch.randn(4, 6).half().t()[1:3])
        self.constant = torch.zeros(2)
        self.norm = nn.BatchNorm1d(6)
        self.first = self.second = nn.Linear(6, 6)

    def forward(self, x):
        return self.second(self.norm(self.first(x))) * self.scale + self.constant.sum()


@pytest.fixture
def archive(tmp_path):
    torch.jit.script(Tensors()).save(tmp_path / "module.pt")
    return tmp_path / "module.pt"


def rewritten(path, change, compression=zipfile.ZIP_STORED):
    """The archive with every entry as `change(name, data)` gives it."""
    with zipfile.ZipFile(path) as file:
        entries = {name: file.read(name) for name in file.namelist()}
    with zipfile.ZipFile(path, "w", compression) as file:
        for name, data in entries.items():
            file.writestr(name, change(name, data))
    return path


def equal(ours, theirs):
    assert set(ours) == set(theirs)
    for name, value in theirs.items():
        assert ours[name].dtype == value.dtype, name
        assert torch.equal(ours[name], value), name


def test_parameters_and_buffers_are_torch_jits(archive):
    assert is_torchscript(archive)
    equal(read_state_dict(archive), torch.jit.load(archive).state_dict())


@pytest.mark.parametrize("half", [False, True])
def test_a_traced_clip(tmp_path, half):
    """As OpenAI's files were made: traced, in half precision, with numbers about the model as buffers."""
    model = random_clip().eval()
    model.register_buffer("input_resolution", torch.tensor(32))
    size = model.visual.input_resolution
    traced = torch.jit.trace(
        model, (torch.randn(1, 3, size, size), torch.ones(1, 77, dtype=torch.long)), check_trace=False
    )
    (traced.half() if half else traced).save(tmp_path / "clip.pt")
    ours = read_state_dict(tmp_path / "clip.pt")
    equal(ours, torch.jit.load(tmp_path / "clip.pt").state_dict())
    assert ours["visual.proj"].dtype == (torch.float16 if half else torch.float32)


def test_the_code_in_it_is_not_compiled(archive, monkeypatch):
    monkeypatch.setattr(torch.jit, "load", None)
    nonsense = lambda name, data: data.replace(b"return", b"garble") if "/code/" in name else data  # noqa: E731
    assert "first.weight" in read_state_dict(rewritten(archive, nonsense))


PICKLES = {
    "GLOBAL, REDUCE": b"cos\nmkdir\n(S'executed'\ntR",
    "INST": b"(S'executed'\nios\nmkdir\n",
    "STACK_GLOBAL": b"\x8c\x02os\x8c\x05mkdir\x93(S'executed'\ntR",
}


@pytest.mark.parametrize("kind", PICKLES)
def test_the_pickle_in_it_calls_nothing(archive, kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    insert = lambda name, data: data[:2] + PICKLES[kind] + b"0" + data[2:] if name.endswith("data.pkl") else data  # noqa: E731
    assert "first.weight" in read_state_dict(rewritten(archive, insert))
    assert not Path("executed").exists()


BROKEN = {
    "state for a type": lambda name, data: b"\x80\x02c__torch__\nA\n}b." if name.endswith("/data.pkl") else data,
    "no module": lambda name, data: b"\x80\x02K\x01." if name.endswith("/data.pkl") else data,
    "code that is not there": lambda name, data: b"" if "/code/" in name else data,
    "storage cut short": lambda name, data: data[:2] if name.endswith("/data/0") else data,
    "memory for a number": lambda name, data: b"\x80\x02Nr\xff\xff\xff\x7f." if name.endswith("/data.pkl") else data,
}


@pytest.mark.parametrize("kind", BROKEN)
def test_what_is_broken_is_named(archive, kind):
    with pytest.raises(BackboneError, match=r"module\.pt is neither"):
        read_state_dict(rewritten(archive, BROKEN[kind]))


def test_a_bomb_is_not_unpacked(archive, monkeypatch):
    monkeypatch.setattr("common.unpickling.MAX_CODE", 1 << 20)
    zeros = lambda name, data: bytes(10_000_000) if name.endswith("/data/0") else data  # noqa: E731
    with pytest.raises(BackboneError, match=r"module\.pt is neither"):
        read_state_dict(rewritten(archive, zeros, zipfile.ZIP_DEFLATED))


def test_a_state_dict_that_grows_is_refused(tmp_path):
    torch.save({"weight": torch.zeros(1).expand(10**12)}, tmp_path / "grows.pt")
    with pytest.raises(BackboneError, match=r"grows\.pt is not read: the tensor 'weight'"):
        read_state_dict(tmp_path / "grows.pt")
