"""2SFS: the stages and their steps, the classifier's start, selective inference, resuming and loading."""

import pytest
import torch
from torch.nn import functional as F

from tests.trainers.replaying import record_on_cpu
from tests.trainers.small_runs import build, logits_of, trained_tensors
from trainers.counted_steps import MIN_LR, cosine
from trainers.step import DeviceStep
from trainers.two_stage import TwoStage

HALVES = {"TRAINER.TWOSTAGE.N_ITERS_FRAC": 0.5, "OPTIM.MAX_EPOCH": 4}
ALL = [f"digit {name}" for name in ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A whole run of two epochs in each stage; its folder, and what was trained at each step."""
    folder = tmp_path_factory.mktemp("run")
    trainer = build("TwoStage", folder, **HALVES)
    trained, rates, forward_backward = [], [], trainer.forward_backward

    def noted(batch):
        before = {name: p.detach().clone() for name, p in trainer.model.prompt_learner.named_parameters()}
        rates.append(trainer.get_current_lr())
        summary = forward_backward(batch)
        after = trainer.model.prompt_learner.named_parameters()
        trained.append({name.split(".")[0] for name, p in after if not torch.equal(p, before[name])})
        return summary

    trainer.forward_backward = noted
    trainer.train()
    return trainer, folder, trained, rates


def test_each_stage_trains_its_own(run):
    _, _, trained, rates = run
    assert trained == [{"text", "vision"}] * 4 + [{"classifier"}] * 4  # epochs of two batches
    assert rates == pytest.approx([0.01 * cosine(step, (4,), MIN_LR / 0.01) for step in (0, 1, 2, 3) * 2])


def test_the_classifier_starts_as_the_tuned_text(tmp_path):
    trainer = build("TwoStage", tmp_path, **HALVES, **{"OPTIM.LR": 0.1})
    before_epoch = trainer.before_epoch

    def look():
        before_epoch()
        if trainer.epoch == 2:
            learner = trainer.model.prompt_learner
            rows = learner.classifier.weight.detach().clone()
            learner.set_stage(1)
            assert torch.equal(rows, trainer.model.text_features())
            raise KeyboardInterrupt

    trainer.before_epoch = look
    with pytest.raises(KeyboardInterrupt):
        trainer.train()


def test_known_classes_have_rows_and_others_text(run):
    trainer = run[0]
    model, learner = trainer.model.eval(), trainer.model.prompt_learner
    images = torch.randn(3, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    base = list(learner.classifier.classnames)
    new = [name for name in ALL if name not in base]
    try:
        model.set_classes(base)
        on_base, rows = logits_of(trainer, images), model.text_features()
        torch.testing.assert_close(rows, F.normalize(learner.classifier.weight, dim=-1))
        model.set_classes(new)
        on_new = logits_of(trainer, images)
        model.set_classes([*new[:2], *base[::-1], *new[2:]])
        mixed = logits_of(trainer, images)
        expected = torch.cat([on_new[:, :2], on_base.flip(1), on_new[:, 2:]], dim=1)
        torch.testing.assert_close(mixed, expected, atol=1e-4, rtol=0)
    finally:
        model.set_classes(base)


@pytest.mark.parametrize("split", ["base", "new", "all"])
def test_a_run_is_loaded_with_its_own_classes(run, split):
    trainer, folder, _, _ = run
    images = torch.randn(3, 3, 48, 48, generator=torch.Generator().manual_seed(1))
    loaded = build("TwoStage", **{"DATASET.SUBSAMPLE_CLASSES": split})
    loaded.load_model(str(folder))
    trainer.model.set_classes(loaded.model.classnames)
    assert torch.equal(logits_of(loaded, images), logits_of(trainer, images))
    trainer.model.set_classes(trainer.train_classnames)


def record_steps(monkeypatch):
    """Let trainers take recorded steps, as on CUDA; returns all that are built, in order."""
    steps = []

    def build_device_step(trainer):
        steps.append(DeviceStep(trainer, record_on_cpu))
        return steps[-1]

    monkeypatch.setattr(TwoStage, "build_device_step", build_device_step)
    return steps


def test_recorded_steps_of_both_stages_train_as_the_ordinary_ones(run, tmp_path, monkeypatch):
    steps = record_steps(monkeypatch)
    trainer = build("TwoStage", tmp_path, **HALVES)
    trainer.train()
    assert_same(trainer, run[0])
    first, second = steps
    assert set(first.parameters) != set(second.parameters) == {"prompt_learner.classifier.weight"}
    assert None not in {first.recorded.recording, second.recorded.recording}


def assert_same(trainer, other):
    whole = other.model.prompt_learner.state_dict()
    for name, tensor in trainer.model.prompt_learner.state_dict().items():
        assert torch.equal(tensor, whole[name]), name


@pytest.mark.parametrize(("stopped_before", "recorded"), [(2, False), (3, True), ("the end", False)])
def test_a_stopped_run_resumes_exactly(run, stopped_before, recorded, tmp_path, monkeypatch):
    steps = record_steps(monkeypatch) if recorded else []
    parts = build("TwoStage", tmp_path, **HALVES)
    before_epoch, after_train = parts.before_epoch, parts.after_train

    def stop():
        if parts.epoch == stopped_before:
            raise KeyboardInterrupt
        before_epoch()

    def stop_at_the_end():
        if stopped_before == "the end":
            raise KeyboardInterrupt
        after_train()

    parts.before_epoch, parts.after_train = stop, stop_at_the_end
    with pytest.raises(KeyboardInterrupt):
        parts.train()
    torch.manual_seed(77)
    resumed = build("TwoStage", tmp_path, **HALVES)
    resumed.train()
    assert resumed.model.prompt_learner.stage == 2
    assert_same(resumed, run[0])
    assert not recorded or steps[-1].recorded.recording is not None


def test_steps_of_both_stages(tmp_path):
    options = {"TRAINER.TWOSTAGE.N_ITERS": 3, "TRAINER.TWOSTAGE.N_ITERS_FRAC": 0.6}  # at two shots: 3 and 3 steps
    trainer = build("TwoStage", tmp_path, **options)
    assert trainer.stages == (3, 3)
    trainer.train()
    assert trainer.sched.last_epoch == 6
    assert [epoch["epoch"] for epoch in trainer.history] == [1, 2, 3, 4]  # two epochs each, the second cut
    assert set(trained_tensors(trainer)) == {"classifier.weight"}


def test_it_starts_from_a_files_layernorms_alone(run, tmp_path):
    _, folder, _, _ = run
    started = build("TwoStage", **{"MODEL.INIT_WEIGHTS": str(folder / "prompt_learner/model.pth.tar-4")})
    learner = started.model.prompt_learner
    assert learner.stage == 1
    assert not learner.classifier.weight.any()
    kept = run[0].model.prompt_learner
    assert torch.equal(learner.text["0"]["ln_1"].weight, kept.text["0"]["ln_1"].weight)
