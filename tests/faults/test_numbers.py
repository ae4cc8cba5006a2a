"""Numbers that are not finite, folders in use, and the same inputs that must give the same outputs."""

import dataclasses
import json
import os
import re
import signal

import numpy as np
import pytest
import torch

import train
from dassl.utils import load_checkpoint
from prompting import PromptedCLIP
from results.features import forget_all
from tests.faults.killing import leftovers, outcome
from tests.locks import locked
from tests.trainers.small_runs import build, data_root
from trainers.base import PromptTrainer
from trainers.step import MAX_SKIPPED_IN_A_ROW

QUICK = ["DATASET.NUM_SHOTS", "2", "OPTIM.MAX_EPOCH", "2", "DATALOADER.TRAIN_X.BATCH_SIZE", "5"]


@pytest.fixture(autouse=True)
def repository_folder(monkeypatch, request):
    monkeypatch.chdir(request.config.rootpath)


def arguments(output, *options):
    return [
        *("--root", data_root(), "--seed", "1", "--trainer", "CoOp", "--device", "cpu"),
        *("--config-file", "configs/trainers/CoOp/tiny_c4_ep50_batch32.yaml"),
        *("--dataset-config-file", "configs/datasets/digits.yaml", "--output-dir", str(output)),
        *(*QUICK, "DATASET.SUBSAMPLE_CLASSES", "base", *options),
    ]


def spoil_loss(trainer, loss):
    return loss * float("nan")


def spoil_gradient(trainer, loss):
    """A finite loss whose gradient is not: the slope of a root at zero."""
    ctx = trainer.model.prompt_learner.ctx
    return loss + (ctx[0, 0] - ctx[0, 0].detach()).abs().sqrt()


@pytest.mark.parametrize(
    ("spoil", "said"), [(spoil_loss, "Loss is infinite or NaN"), (spoil_gradient, "the gradient of prompt_learner.ctx")]
)
def test_training_stops_at_the_batch_and_the_last_good_state_is_kept(spoil, said, tmp_path, monkeypatch, capsys):
    assert train.main(arguments(tmp_path / "whole")) == 0
    backward = PromptTrainer.model_backward

    def spoiled(self, loss):
        backward(self, spoil(self, loss) if (self.epoch, self.batch_idx) == (1, 1) else loss)

    with monkeypatch.context() as patch:
        patch.setattr(PromptTrainer, "model_backward", spoiled)
        assert train.main(arguments(tmp_path / "run")) == train.DIVERGED == 3
    error = capsys.readouterr().err
    assert error.startswith(f"error: {said}")
    assert "epoch 2 of 2, batch 2 of 2, images " in error
    assert error.count(".png") == 4
    assert "and 1 more" in error
    assert not (tmp_path / "run" / "results.json").exists()
    record = json.loads((tmp_path / "run" / "diverged.json").read_text())
    assert (record["status"], record["epoch"], record["batch"], record["finished_epochs"]) == ("diverged", 2, 2, 1)
    assert len(record["images"]) == 5
    state = load_checkpoint(tmp_path / "run" / "resume.pth.tar")
    assert state["epoch"] == 1
    assert all(torch.isfinite(t).all() for t in state["models"]["prompt_learner"]["state_dict"].values())
    assert train.main(arguments(tmp_path / "run")) == 0, "once the cause is mended, the same command goes on"
    assert outcome(tmp_path / "run") == outcome(tmp_path / "whole")
    assert not (tmp_path / "run" / "diverged.json").exists()


def test_weights_that_overflow_are_not_saved_over_good_ones(tmp_path, monkeypatch, capsys):
    update = PromptTrainer.model_update

    def too_far(self):
        update(self)
        if self.batch_idx + 1 == self.num_batches:
            self.model.prompt_learner.ctx.data[0, 0] = float("inf")

    monkeypatch.setattr(PromptTrainer, "model_update", lambda self, names=None: too_far(self))
    assert train.main(arguments(tmp_path)) == 3
    assert "the weight of prompt_learner.ctx is infinite or NaN (epoch 1 of 2, batch 2 of 2" in capsys.readouterr().err
    assert load_checkpoint(tmp_path / "resume.pth.tar")["epoch"] == 0
    assert not (tmp_path / "prompt_learner").exists()


def scaled(trainer, factor):
    """A step with loss scaling, as amp takes it on a GPU: the loss is 0, its gradient `factor` everywhere."""
    trainer.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
    trainer.epoch, trainer.batch_idx, trainer.num_batches = 0, 0, 1
    ctx = trainer.model.prompt_learner.ctx
    trainer.scaled_update((ctx - ctx.detach()).sum() * factor)


def test_steps_that_overflow_are_skipped_and_counted(tmp_path):
    trainer = build("CoOp")
    before = trainer.model.prompt_learner.ctx.detach().clone()
    scaled(trainer, 1e36)
    assert trainer.skipped_steps == 1
    assert torch.equal(trainer.model.prompt_learner.ctx, before)
    scaled(trainer, 1.0)
    assert trainer.skipped_steps == 1
    assert not torch.equal(trainer.model.prompt_learner.ctx, before)
    again = build("CoOp")
    again.load_resume_state(trainer.resume_state())
    assert again.skipped_steps == 1


def test_a_gradient_that_no_scale_makes_finite_ends_the_run():
    trainer = build("CoOp")
    trainer._skipped_in_a_row = MAX_SKIPPED_IN_A_ROW - 1
    with pytest.raises(FloatingPointError, match="30 steps in a row, down to a loss scale of 32768 .*PREC to fp32"):
        scaled(trainer, 1e36)


def test_the_same_inputs_give_the_same_outputs_with_any_number_of_workers(tmp_path):
    for number, workers in enumerate((0, 0, 2)):
        assert train.main(arguments(tmp_path / str(number), "DATALOADER.NUM_WORKERS", str(workers))) == 0
    first, *others = (outcome(tmp_path / str(number)) for number in range(3))
    assert len(first) == 2
    assert all(other == first for other in others)
    record = json.loads((tmp_path / "2" / "results.json").read_text())
    held = record["environment"]["determinism"]
    assert (held["bit_identical"], held["seeded"], held["loader_workers"]) == (True, True, 2)
    assert record["numerics"] == {"diverged": False, "amp_skipped_steps": 0}


def test_a_run_that_is_stopped_or_killed_when_it_has_written_its_results_leaves_no_state(tmp_path, monkeypatch):
    write = train.write_results

    def write_and_signal(path, record):
        write(path, record)
        os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(train, "write_results", write_and_signal)
        assert train.main(arguments(tmp_path)) == train.STOPPED
    state = tmp_path / "resume.pth.tar"
    assert not state.exists()
    results = (tmp_path / "results.json").read_bytes()
    state.write_bytes(b"of a process that SIGKILL ended before it removed this")
    assert train.main(arguments(tmp_path)) == 0
    assert not state.exists()
    assert (tmp_path / "results.json").read_bytes() == results


def test_running_out_of_memory_before_training_is_one_line(tmp_path, monkeypatch, capsys):
    def fails(cfg):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 262144 bytes")

    monkeypatch.setattr(train, "build_trainer", fails)
    assert train.main(arguments(tmp_path)) == 2
    assert capsys.readouterr().err.startswith("error: out of memory: DefaultCPUAllocator: can't allocate")


def test_one_setting_for_the_flags_of_cuda(tmp_path, monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")  # a choice of the user's stays
    assert train.main(arguments(tmp_path, "TRAIN.DETERMINISTIC", "True")) == 0
    held = json.loads((tmp_path / "results.json").read_text())["environment"]["determinism"]
    assert (held["deterministic_algorithms"], held["cublas_workspace"]) == (True, ":16:8")
    assert not torch.are_deterministic_algorithms_enabled()


def test_the_second_of_two_equal_runs_says_who_runs_it(tmp_path, capsys):
    with locked(tmp_path):
        assert train.main(arguments(tmp_path)) == train.BUSY == 69
    assert "in use by process" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_signal_ends_the_seed_and_those_after_it_and_the_same_command_goes_on(tmp_path, monkeypatch, capsys):
    def seeds(folder):
        command = arguments(tmp_path / folder / "{seed}", "OPTIM.NAME", "sgd")
        position = command.index("--seed")
        command[position : position + 2] = ["--seeds", "1", "2", "3"]
        return command

    assert train.main(seeds("whole")) == 0
    step = PromptTrainer.forward_backward

    def signalled(self, batch):
        if (self.cfg.SEED, self.epoch, self.batch_idx) == (2, 1, 0):
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(PromptTrainer, "forward_backward", signalled)
        assert train.main(seeds("parts")) == train.STOPPED == 75
    assert "stopped by SIGTERM: nothing is lost" in capsys.readouterr().err
    assert (tmp_path / "parts" / "1" / "results.json").exists(), "the seed before is finished"
    state = load_checkpoint(tmp_path / "parts" / "2" / "resume.pth.tar")
    assert (state["epoch"], state["within_epoch"]["batches"]) == (1, 1)
    assert not (tmp_path / "parts" / "2" / "results.json").exists()
    assert not (tmp_path / "parts" / "3").exists(), "and none after it has begun"
    assert not list((tmp_path / "parts").rglob(".lock"))
    assert train.main(seeds("parts")) == 0
    assert outcome(tmp_path / "parts") == outcome(tmp_path / "whole")
    assert leftovers(tmp_path / "parts") == []


def test_a_run_that_ends_before_its_results_are_written_keeps_its_history(tmp_path, monkeypatch):
    def fails(path, record):
        raise OSError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(train, "write_results", fails)
        assert train.main(arguments(tmp_path)) == 2
    assert train.main(arguments(tmp_path)) == 0
    assert len(json.loads((tmp_path / "results.json").read_text())["history"]) == 2
    assert not (tmp_path / "resume.pth.tar").exists()


@pytest.fixture(scope="module")
def trained_run(tmp_path_factory, request):
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(request.config.rootpath)
        assert train.main(arguments(folder)) == 0
    return folder


def spoil(monkeypatch, name, change):
    """Change what a method of the classifier returns."""
    method = getattr(PromptedCLIP, name)
    monkeypatch.setattr(PromptedCLIP, name, lambda self, *inputs: change(method(self, *inputs)))


def spoil_logits(value):
    def change(output):
        logits = output.logits.clone()
        logits[1, 0] = float(value)
        return dataclasses.replace(output, logits=logits)

    return change


def spoil_row(value):
    def change(features):
        features = features.clone()
        features[1] = float(value)
        return features

    return change


@pytest.mark.parametrize("reuse", ["True", "False"])
@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("compare", spoil_logits("inf"), "test set, batch 1 of 1, images .*png"),
        ("compare", spoil_logits("nan"), "test set, batch 1 of 1, images .*png"),
        ("compare", spoil_logits("-inf"), "logits of [^,]*png are infinite or NaN"),
        ("image_features", spoil_row("nan"), "infinite or NaN.*png|png is infinite or NaN"),
        ("text_features", spoil_row("inf"), "text feature of digit one is infinite or NaN"),
    ],
)
def test_evaluation_ends_where_a_logit_is_not_finite(
    name, change, said, reuse, trained_run, tmp_path, monkeypatch, capsys
):
    forget_all()
    spoil(monkeypatch, name, change)
    options = ("--eval-only", "--model-dir", str(trained_run), "FEATURES.REUSE", reuse)
    command = arguments(tmp_path)
    position = command.index("--device")
    assert train.main([*command[:position], *options[:3], *command[position:], *options[3:]]) == train.DIVERGED
    assert re.search(f"^error: class split base: .*({said})", capsys.readouterr().err)
    record = json.loads((tmp_path / "diverged.json").read_text())
    assert (record["during"], record["batch"]) == ("evaluation (test)", None)
    assert not (tmp_path / "results.json").exists()
    forget_all()


def test_validation_ends_where_a_logit_is_not_finite(tmp_path, monkeypatch, capsys):
    spoil(monkeypatch, "compare", lambda output: output if output.logits.requires_grad else spoil_logits("inf")(output))
    assert train.main(arguments(tmp_path, "TEST.FINAL_MODEL", "best_val")) == train.DIVERGED
    assert "infinite or NaN (val set, batch 1 of 1, images " in capsys.readouterr().err
    assert json.loads((tmp_path / "diverged.json").read_text())["during"] == "evaluation (val)"


def test_features_of_norm_zero_are_said(tmp_path, monkeypatch, capsys):
    forget_all()
    spoil(monkeypatch, "text_features", lambda features: features if features.requires_grad else spoil_row(0)(features))
    spoil(monkeypatch, "image_features", lambda features: spoil_row(0)(features) if len(features) > 5 else features)
    assert train.main(arguments(tmp_path)) == 0
    assert "Features of norm zero, which are like nothing: 1 images (" in capsys.readouterr().out
    record = json.loads((tmp_path / "results.json").read_text())["numerics"]["zero_norm"]
    assert (record["base"]["images"], record["base"]["classes"]) == (1, ["digit one"])
    assert record["base"]["first_images"][0].endswith(".png")
    forget_all()


def test_kept_features_that_are_not_finite_are_computed_anew(tmp_path, capsys):
    keep = ("FEATURES.FOLDER", str(tmp_path / "features"), "TEST.FIT_TEMPERATURE", "False")
    forget_all()
    assert train.main(arguments(tmp_path / "first", *keep)) == 0
    (path,) = (tmp_path / "features").rglob("*.npz")
    with np.load(path) as file:
        arrays = dict(file)
    arrays["features"][0, 0] = np.inf
    np.savez(path, **arrays)
    forget_all()
    assert train.main(arguments(tmp_path / "second", *keep)) == 0
    assert "is damaged (a feature is infinite or NaN): computed anew" in capsys.readouterr().out
    assert outcome(tmp_path / "second") == outcome(tmp_path / "first")
    forget_all()
