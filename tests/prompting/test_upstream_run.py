"""train.py --eval-only --model-dir on a run's folder as the published MaPLe code leaves it."""

import json

import pytest
import torch

import train
from prompting.checkpoint import main

# Our names as the published code has them.
PUBLISHED = {
    "ctx": "prompt_learner.ctx",
    "proj": "prompt_learner.proj",
    "text_prompts": "prompt_learner.compound_prompts_text",
    "projections": "prompt_learner.compound_prompt_projections",
}


class Scheduler:
    """Stands for a pickled scheduler object."""


def arguments(output, *flags):
    return [
        *("--root", "assets", "--seed", "1", "--trainer", "MaPLe", "--device", "cpu", "--output-dir", str(output)),
        *("--config-file", "configs/trainers/MaPLe/tiny_c2_ep10_batch4_2ctx.yaml"),
        *("--dataset-config-file", "configs/datasets/digits.yaml", *flags),
        *("DATASET.NUM_SHOTS", "1", "OPTIM.MAX_EPOCH", "1", "DATASET.SUBSAMPLE_CLASSES", "base"),
    ]


def publish(path, target):
    """Write our checkpoint as the published code would, with the rest of the model."""
    state = torch.load(path, weights_only=True)["state_dict"]
    names = {name: ".".join([PUBLISHED[name.split(".")[0]], *name.split(".")[1:]]) for name in state}
    rest = ("image_encoder.conv1.weight", "text_encoder.transformer.resblocks.0.attn.in_proj_weight", "logit_scale")
    theirs = {names[name]: value for name, value in state.items()} | dict.fromkeys(rest, torch.ones(1))
    theirs |= dict.fromkeys(("prompt_learner.token_prefix", "prompt_learner.token_suffix"), torch.ones(5, 1, 8))
    target.parent.mkdir(parents=True)
    torch.save({"state_dict": theirs, "epoch": 1, "scheduler": {"successor": Scheduler()}}, target)


@pytest.fixture(autouse=True)
def repository_folder(monkeypatch, request):
    monkeypatch.chdir(request.config.rootpath)


def test_a_published_run_evaluates_as_ours(tmp_path):
    accuracy = lambda f: json.loads((f / "results.json").read_text())["metrics"]["base"]["accuracy"]  # noqa: E731
    assert train.main(arguments(tmp_path / "run")) == 0
    file = tmp_path / "theirs" / "MultiModalPromptLearner" / "model.pth.tar-1"
    publish(tmp_path / "run" / "prompt_learner" / "model.pth.tar-1", file)
    assert main(["convert", str(file), str(tmp_path / "converted" / "prompt_learner" / "model.pth.tar-1")]) == 0
    for folder in ("theirs", "converted"):
        flags = ("--eval-only", "--model-dir", str(tmp_path / folder), "--load-epoch", "1")
        assert train.main(arguments(tmp_path / f"{folder}_eval", *flags)) == 0
        assert accuracy(tmp_path / f"{folder}_eval") == accuracy(tmp_path / "run")


def test_a_truncated_published_file_ends_the_run_with_its_name(tmp_path, capsys):
    file = tmp_path / "theirs" / "MultiModalPromptLearner" / "model.pth.tar-1"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"PK\x03\x04 and no more")
    assert train.main(arguments(tmp_path / "eval", "--eval-only", "--model-dir", str(tmp_path / "theirs"))) != 0
    assert str(file) in capsys.readouterr().err
