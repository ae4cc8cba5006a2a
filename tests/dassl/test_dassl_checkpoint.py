"""Checkpoints: whole, safe to load, and with errors that name file and cure."""

import os
import zipfile
from collections import Counter, OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from dassl.utils import (
    CheckpointError,
    load_checkpoint,
    load_pretrained_weights,
    resume_from_checkpoint,
    save_checkpoint,
)


def state_of(model, epoch=3, **entries):
    return {"state_dict": model.state_dict(), "epoch": epoch, **entries}


def test_names_pointer_and_best(tmp_path, capsys):
    model = nn.Linear(2, 2)
    save_checkpoint(state_of(model), tmp_path / "m", is_best=True)
    assert sorted(os.listdir(tmp_path / "m")) == ["checkpoint", "model-best.pth.tar", "model.pth.tar-3"]
    assert (tmp_path / "m" / "checkpoint").read_text() == "model.pth.tar-3\n"
    assert f"Checkpoint saved to {tmp_path / 'm' / 'model.pth.tar-3'}" in capsys.readouterr().out
    save_checkpoint(state_of(model, 4), tmp_path / "m", model_name="mine.pth")
    assert (tmp_path / "m" / "checkpoint").read_text() == "mine.pth\n"
    assert load_checkpoint(tmp_path / "m" / "model-best.pth.tar")["epoch"] == 3


def test_the_prefix_of_data_parallel_is_dropped(tmp_path):
    state = state_of(nn.DataParallel(nn.Linear(2, 2)))
    save_checkpoint(state, tmp_path)
    assert set(load_checkpoint(tmp_path / "model.pth.tar-3")["state_dict"]) == {"weight", "bias"}
    assert "module.weight" in state["state_dict"], "the caller's dictionary is left alone"
    save_checkpoint(state, tmp_path, remove_module_from_keys=False)
    assert set(load_checkpoint(tmp_path / "model.pth.tar-3")["state_dict"]) == {"module.weight", "module.bias"}


def test_what_is_not_plain_is_made_plain(tmp_path):
    sched = torch.optim.lr_scheduler.StepLR(torch.optim.SGD(nn.Linear(1, 1).parameters(), 0.1), 2)
    entries = {
        "float": np.float64(2.5),
        "int": np.int64(7),
        "array": np.arange(3),
        "path": Path("a/b"),
        "counter": Counter([1, 1]),
        "nested": [({"x": np.float32(0.5)}, None)],
        "scheduler": {"successor": sched},
        "parameter": nn.Parameter(torch.ones(1)),
        "ordered": OrderedDict(a=1),
    }
    save_checkpoint(state_of(nn.Linear(1, 1), **entries), tmp_path)
    loaded = load_checkpoint(tmp_path / "model.pth.tar-3")
    assert (loaded["float"], type(loaded["float"])) == (2.5, float)
    assert (loaded["int"], type(loaded["int"])) == (7, int)
    assert loaded["array"].tolist() == [0, 1, 2]
    assert loaded["path"] == "a/b"
    assert loaded["counter"] == Counter({1: 2})
    assert loaded["nested"] == [({"x": 0.5}, None)]
    assert loaded["scheduler"]["successor"]["step_size"] == 2
    assert loaded["parameter"].tolist() == [1.0]
    assert not loaded["parameter"].requires_grad


def test_what_cannot_be_stored_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(TypeError, match=r"checkpoint\['extra'\]\['f'\] is a function"):
        save_checkpoint(state_of(nn.Linear(1, 1), extra={"f": lambda: 1}), tmp_path)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_a_truncated_file_is_named(tmp_path, share):
    save_checkpoint(state_of(nn.Linear(30, 30)), tmp_path)
    path = tmp_path / "model.pth.tar-3"
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(CheckpointError, match=str(path)) as error:
        load_checkpoint(path)
    assert "damaged or cut short" in str(error.value)


def test_a_file_that_grows_is_refused_unread(tmp_path, monkeypatch):
    save_checkpoint(state_of(nn.Linear(30, 30)), tmp_path)
    path = tmp_path / "model.pth.tar-3"
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in entries.items():
            archive.writestr(name, bytes(65 * 2**20) if name.endswith("/data/0") else data)
    assert path.stat().st_size < 2**20
    monkeypatch.setattr(torch, "load", None)
    with pytest.raises(CheckpointError, match=r"model\.pth\.tar-3.*bytes would come out of"):
        load_checkpoint(path)


class Evil:
    def __reduce__(self):
        return os.mkdir, ("evil",)


def test_a_file_that_needs_pickle_is_refused_with_the_cure(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": {}, "scheduler": Evil()}, "old.pth")
    with pytest.raises(CheckpointError, match=r"old\.pth.*pickled Python objects.*weights_only=False"):
        load_checkpoint("old.pth")
    assert not os.path.exists("evil")


def test_a_file_of_another_kind(tmp_path):
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(CheckpointError, match=r"notes\.txt.* is not a checkpoint"):
        load_checkpoint(tmp_path / "notes.txt")


def test_missing_files(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.pth"):
        load_checkpoint(tmp_path / "none.pth")
    with pytest.raises(ValueError, match="None"):
        load_checkpoint(None)
    with pytest.raises(FileNotFoundError):
        resume_from_checkpoint(tmp_path, nn.Linear(1, 1))


def test_resuming_follows_the_pointer(tmp_path, capsys):
    def parts():
        model = nn.Linear(2, 2)
        optim = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
        return model, optim, torch.optim.lr_scheduler.MultiStepLR(optim, [1, 2])

    model, optim, sched = parts()
    model(torch.ones(1, 2)).sum().backward()
    optim.step()
    sched.step()
    state = state_of(model, optimizer=optim.state_dict(), scheduler=sched.state_dict())
    save_checkpoint(state, tmp_path)
    other, other_optim, other_sched = parts()
    assert resume_from_checkpoint(tmp_path, other, other_optim, other_sched) == 3
    assert torch.equal(model.weight, other.weight)
    assert other_optim.param_groups[0]["lr"] == pytest.approx(0.01)
    assert other_sched.milestones == Counter([1, 2])
    printed = capsys.readouterr().out
    for line in ("Loaded model weights", "Loaded optimizer", "Loaded scheduler", "Previous epoch: 3"):
        assert line in printed
    save_checkpoint(state_of(model, optimizer=None, scheduler=None), tmp_path)
    assert resume_from_checkpoint(tmp_path, other, other_optim, other_sched) == 3


def test_pretrained_weights_that_fit_are_loaded(tmp_path, capsys):
    source = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 5), nn.Linear(1, 1))
    torch.save({f"module.{k}": v for k, v in source.state_dict().items()}, tmp_path / "w.pth")
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 3))
    load_pretrained_weights(model, tmp_path / "w.pth")
    assert torch.equal(model[0].weight, source[0].weight)
    printed = capsys.readouterr().out
    assert "Successfully loaded pretrained weights" in printed
    assert "['1.weight', '1.bias', '2.weight', '2.bias']" in printed
    with pytest.warns(UserWarning, match="no weight fits"):
        load_pretrained_weights(nn.Linear(7, 7), tmp_path / "w.pth")
