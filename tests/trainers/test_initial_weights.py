"""MODEL.INIT_WEIGHTS: training starts from all tensors of a file, or not at all."""

import hashlib
import json
import re

import pytest
import torch

import train
from tests.test_train import arguments
from tests.trainers.small_runs import data_root
from trainers.base import PromptTrainer

NODES = {"CoOp": "COOP", "BMIP": "BMIP"}


@pytest.fixture(autouse=True)
def quick(monkeypatch, request):
    monkeypatch.chdir(request.config.rootpath)
    monkeypatch.setattr(train, "collect_env_info", str)


def run(trainer, output, *options):
    options = ("DATASET.NUM_SHOTS", "1", "OPTIM.MAX_EPOCH", "1", *options)
    return train.main(arguments(trainer, output, *options, root=data_root()))


def saved(folder):
    return torch.load(folder / "prompt_learner" / "model.pth.tar-1", weights_only=True)


@pytest.fixture(scope="module", params=NODES)
def source(request, tmp_path_factory):
    """(trainer, the checkpoint of a run of it)."""
    folder = tmp_path_factory.mktemp("source")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(request.config.rootpath)
        patch.setattr(train, "collect_env_info", str)
        assert run(request.param, folder, "MODEL.INIT_SEED", "7", "OPTIM.LR", "0.1") == 0
    return request.param, saved(folder)


@pytest.fixture
def started(monkeypatch):
    """The learner's tensors as they are when the first epoch begins."""
    tensors = {}

    def keep(self):
        tensors.update({name: value.clone() for name, value in self.model.prompt_learner.state_dict().items()})

    monkeypatch.setattr(PromptTrainer, "before_epoch", keep)
    return tensors


FORMS = {
    "checkpoint": lambda content: content,
    "state_dict only": lambda content: content["state_dict"],
    "module.": lambda content: {"state_dict": {f"module.{k}": v for k, v in content["state_dict"].items()}},
    "bare with module.": lambda content: {f"module.{k}": v for k, v in content["state_dict"].items()},
}


@pytest.mark.parametrize("form", FORMS)
def test_training_starts_from_the_files_tensors_and_says_so(source, form, started, tmp_path):
    trainer, content = source
    path = tmp_path / "start.pth"
    torch.save(FORMS[form](content), path)
    assert run(trainer, tmp_path / "run", "MODEL.INIT_WEIGHTS", str(path)) == 0
    wanted = content["state_dict"]
    assert started.keys() == wanted.keys()
    assert all(torch.equal(started[name], value) for name, value in wanted.items())
    trained = saved(tmp_path / "run")["state_dict"]
    assert any(not torch.equal(trained[name], value) for name, value in wanted.items())
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    notes = json.loads((tmp_path / "run" / "results.json").read_text(encoding="utf-8"))["notes"]
    assert notes["init_weights"] == {"file": str(path), "sha256": sha256, "tensors": sorted(wanted)}
    (line,) = [line for line in (tmp_path / "run" / "log.txt").read_text().splitlines() if "Initial weights" in line]
    assert f"{len(wanted)} tensors" in line
    assert all(text in line for text in (str(path), sha256, *wanted))


def without_ctx(tensors):
    return {name: value for name, value in tensors.items() if name != "ctx"} | {"other": torch.ones(2)}


UNFIT = {
    "other numbers": (
        lambda tensors: {name: value.bool() if name == "ctx" else value for name, value in tensors.items()},
        [r"ctx holds torch\.bool instead of torch\.float32"],
    ),
    "a tensor missing": (without_ctx, ["missing ctx", "unexpected other"]),
    "a tensor more": (lambda t: t | {"extra": torch.ones(2)}, ["unexpected extra"]),
    "another shape": (
        lambda t: t | {"ctx": torch.ones(9, 128)},
        [r"ctx has shape \(9, 128\)", r"instead of \(\d, 128\)"],
    ),
    "not finite": (lambda t: t | {"ctx": t["ctx"] * float("nan")}, ["ctx holds NaN"]),
    "a name twice": (lambda t: t | {"module.ctx": t["ctx"]}, ["holds a tensor twice"]),
}


def refused(status, capsys, output, *messages):
    """One line, status 2, nothing written."""
    lines = capsys.readouterr().err.strip().splitlines()
    assert status == 2
    assert len(lines) == 1, lines
    assert lines[0].startswith("error: ")
    for message in messages:
        assert re.search(message, lines[0]), lines
    assert not output.exists()


@pytest.mark.parametrize("case", UNFIT)
def test_a_file_of_which_a_part_fits_is_refused(source, case, tmp_path, capsys):
    trainer, content = source
    change, messages = UNFIT[case]
    torch.save({"state_dict": change(content["state_dict"])}, tmp_path / "start.pth")
    status = run(trainer, tmp_path / "run", "MODEL.INIT_WEIGHTS", str(tmp_path / "start.pth"))
    refused(status, capsys, tmp_path / "run", r"start\.pth", *messages)


def test_another_prompt_length_is_refused_with_both_shapes(source, tmp_path, capsys):
    trainer, content = source
    torch.save(content, tmp_path / "start.pth")
    have, want = len(content["state_dict"]["ctx"]), 3
    options = (f"TRAINER.{NODES[trainer]}.N_CTX", str(want), "MODEL.INIT_WEIGHTS", str(tmp_path / "start.pth"))
    status = run(trainer, tmp_path / "run", *options)
    refused(status, capsys, tmp_path / "run", rf"ctx has shape \({have}, 128\) instead of \({want}, 128\)")


@pytest.mark.parametrize("content", [None, b"", b"no checkpoint"])
def test_a_file_that_is_not_there_or_no_checkpoint(content, tmp_path, capsys):
    path = tmp_path / "start.pth"
    if content is not None:
        path.write_bytes(content)
    status = run("CoOp", tmp_path / "run", "MODEL.INIT_WEIGHTS", str(path))
    refused(status, capsys, tmp_path / "run", r"start\.pth")


def test_zero_shot_clip_takes_none(tmp_path, capsys):
    torch.save({"ctx": torch.ones(4, 128)}, tmp_path / "start.pth")
    status = run("ZeroshotCLIP", tmp_path / "run", "MODEL.INIT_WEIGHTS", str(tmp_path / "start.pth"))
    refused(status, capsys, tmp_path / "run", r"start\.pth.*ZeroshotCLIP has nothing to train")
