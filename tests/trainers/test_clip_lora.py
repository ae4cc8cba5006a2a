"""CLIP-LoRA: where its layers lie, dropout and its draws, and training by steps per shot."""

import pytest
import torch

from tests.trainers.small_runs import build, first_batch, logits_of, stir, trained_tensors
from trainers.clip_lora import layers_at
from trainers.counted_steps import MIN_LR, cosine

DROPOUT = {"TRAINER.CLIP_LORA.DROPOUT_RATE": 0.5}
STEPS = {"TRAINER.CLIP_LORA.N_ITERS": 2}  # at two shots: 4 steps, of which an epoch of small_runs has 2
ODD_STEPS = {"TRAINER.CLIP_LORA.N_ITERS": 3, "DATASET.NUM_SHOTS": 3}  # 9 steps in epochs of 3 batches


def test_positions_are_the_released_codes():
    """Its tables for towers of 12 and of 24 layers."""
    twelve = {"bottom": range(4), "mid": range(4, 8), "up": range(8, 12), "half-bottom": range(6)}
    twelve |= {"half-up": range(6, 12), "all": range(12), "top3": range(9, 12)}
    assert {name: layers_at(name, 12) for name in twelve} == twelve
    assert (layers_at("half-up", 24), layers_at("half-bottom", 24)) == (range(12, 24), range(12))


def test_what_a_tower_alone_trains_and_reuses():
    text, vision = build("CLIP_LoRA/text"), build("CLIP_LoRA/vision")
    assert {name.split(".")[0] for name in trained_tensors(text)} == {"text"}
    assert {name.split(".")[1] for name in trained_tensors(text)} == {"2", "3"}
    assert (text.image_features_follow, text.model.prompt_learner.text_is_frozen) == ("image", False)
    assert {name.split(".")[0] for name in trained_tensors(vision)} == {"vision"}
    assert (vision.image_features_follow, vision.model.prompt_learner.text_is_frozen) == ("prompts", True)


def test_dropout_is_drawn_in_training_only():
    trainer, images = build("CLIP_LoRA", **DROPOUT), torch.randn(2, 3, 48, 48)
    stir(trainer)
    trainer.model.train()
    first, second = trainer.model(images), trainer.model(images)
    assert not torch.equal(first, second)
    with torch.no_grad(), trainer.model.evaluating():  # as a validation begins, before it says so to the learner
        cached = trainer.model._cached_text
    assert torch.equal(logits_of(trainer, images), logits_of(trainer, images))
    with torch.no_grad():
        assert torch.equal(cached, trainer.model.text_features())


def test_dropout_leaves_the_mean_as_it_is():
    learner = build("CLIP_LoRA", **DROPOUT).model.prompt_learner
    term = learner.text["0"]["q"].train()
    torch.nn.init.ones_(term.B)
    x = torch.ones(4000, term.A.shape[1])
    torch.testing.assert_close(term(x).mean(), term.eval()(x)[0, 0], rtol=0.05, atol=0.01)
    assert learner.text["0"]["k"].dropout == 0.5


@pytest.mark.parametrize("recompute", [False, True])
def test_recomputed_layers_draw_the_same(recompute):
    trainer = build("CLIP_LoRA", **DROPOUT)
    trainer.model.train().checkpoint_activations(recompute)
    batch = trainer.parse_batch_train(first_batch(trainer))
    gradients = []
    for again in (False, recompute):
        trainer.model.checkpoint_activations(again)
        torch.manual_seed(5)
        loss = trainer.objective(trainer.model, *batch).total
        gradients.append(torch.autograd.grad(loss, [*trained_tensors(trainer).values()]))
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)


def test_a_step_with_dropout_is_not_recorded():
    assert not build("CLIP_LoRA", **DROPOUT).objective.recordable
    assert build("CLIP_LoRA").objective.recordable


def test_the_cosine_is_pytorchs():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 7, eta_min=MIN_LR)
    for step in range(8):
        assert 2e-4 * cosine(step, (7,), MIN_LR / 2e-4) == pytest.approx(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    assert cosine(7, (7, 3), 0.1) == cosine(0, (3,), 0.1) == 1


def rates_of(trainer):
    """Trains, and returns the learning rate of every step."""
    rates, forward_backward = [], trainer.forward_backward

    def noted(batch):
        rates.append(trainer.get_current_lr())
        return forward_backward(batch)

    trainer.forward_backward = noted
    trainer.train()
    return rates


@pytest.mark.parametrize(("options", "steps", "epochs"), [(STEPS, 4, 2), (ODD_STEPS, 9, 3)])
def test_steps_per_shot(options, steps, epochs, tmp_path):
    trainer = build("CLIP_LoRA", tmp_path, **options)
    rates = rates_of(trainer)
    assert rates == pytest.approx([0.01 * cosine(step, (steps,), MIN_LR / 0.01) for step in range(steps)])
    assert [epoch["epoch"] for epoch in trainer.history] == list(range(1, epochs + 1))
    assert trainer.get_current_lr() == pytest.approx(MIN_LR)


def test_the_last_epoch_ends_with_the_last_step(tmp_path):
    options = {"TRAINER.CLIP_LORA.N_ITERS": 5, "DATASET.NUM_SHOTS": 1, "DATALOADER.TRAIN_X.BATCH_SIZE": 2}
    assert len(rates_of(build("CLIP_LoRA", tmp_path, **options))) == 5  # epochs of 2 batches


def test_a_run_by_steps_resumes_exactly_with_dropout(tmp_path):
    options = DROPOUT | STEPS
    whole = build("CLIP_LoRA", tmp_path / "whole", **options)
    whole.train()
    parts = build("CLIP_LoRA", tmp_path / "parts", **options)

    def stop():
        if parts.epoch == 1:
            raise KeyboardInterrupt

    parts.before_epoch = stop
    with pytest.raises(KeyboardInterrupt):
        parts.train()
    torch.manual_seed(77)
    resumed = build("CLIP_LoRA", tmp_path / "parts", **options)
    resumed.train()
    for name, tensor in trained_tensors(whole).items():
        assert torch.equal(tensor, trained_tensors(resumed)[name]), name


def test_steps_per_shot_need_shots(tmp_path):
    trainer = build("CLIP_LoRA", tmp_path, **STEPS, **{"DATASET.NUM_SHOTS": -1})
    with pytest.raises(ValueError, match=r"N_ITERS is 2 steps per shot.*NUM_SHOTS to at least 1, or N_ITERS 0"):
        trainer.train()


def test_the_start_is_clip():
    """B starts at zero, so that nothing is changed before training."""
    trainer = build("CLIP_LoRA")
    for name, tensor in trained_tensors(trainer).items():
        if name.endswith(".B"):
            torch.nn.init.zeros_(tensor)
    images = torch.randn(2, 3, 48, 48)
    before = logits_of(trainer, images)
    learner = trainer.model.prompt_learner
    learner.text, learner.vision = torch.nn.ModuleDict(), torch.nn.ModuleDict()
    torch.testing.assert_close(logits_of(trainer, images), before, atol=1e-4, rtol=0)
