"""CLIP-LoRA: where its layers lie, dropout and its draws, and training by steps per shot."""

import pytest
import torch

from common.unpickling import CheckpointError
from prompting.changes import layers_at
from prompting.checkpoint import main, read_trained
from tests.trainers.small_runs import build, first_batch, logits_of, stir, trained_tensors
from trainers.clip_lora import LowRank
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


# Files of the released code


def released_file(learner, **changes):
    """What its save_lora writes of a learner: the text tower's layers come first, then the vision tower's."""
    theirs = {"q": "q_proj", "k": "k_proj", "v": "v_proj", "o": "proj"}
    weights = {
        f"layer_{number}": {
            theirs[name]: {"w_lora_A": term.A.detach().clone(), "w_lora_B": term.B.detach().clone()}
            for name, term in layer.items()
        }
        for number, layer in enumerate([*learner.text.values(), *learner.vision.values()])
    }
    metadata = {"r": 2, "alpha": 1, "encoder": "both", "params": ["q", "k", "v"], "position": "all"}
    return {"weights": weights, "metadata": metadata | changes}


def test_a_released_file_is_read(tmp_path, capsys):
    """Of one tower: the bundled model's have the same width, and a file of both would not show where one ends."""
    trained = build("CLIP_LoRA/vision")
    stir(trained)
    file, folder = tmp_path / "lora_weights.pt", tmp_path / "run" / "prompt_learner"
    folder.mkdir(parents=True)
    torch.save(released_file(trained.model.prompt_learner, encoder="vision", params=["v", "o"]), file)
    capsys.readouterr()
    assert main(["show", str(file)]) == 0
    assert "settings  R 2, ENCODER vision, PARAMS ('v', 'o')\n" in capsys.readouterr().out
    assert main(["convert", str(file), str(folder / "model.pth.tar-1")]) == 0
    loaded, started = build("CLIP_LoRA/vision"), build("CLIP_LoRA/vision", **{"MODEL.INIT_WEIGHTS": str(file)})
    loaded.load_model(str(tmp_path / "run"))
    tensors = trained_tensors(loaded)
    assert all(torch.equal(tensors[name], tensor) for name, tensor in trained_tensors(trained).items())
    assert started.notes["init_weights"]["tensors"] == sorted(tensors)  # small_runs moves them afterwards
    with pytest.raises(CheckpointError, match=r"is of another alpha: set TRAINER.CLIP_LORA.ALPHA 1$"):
        build("CLIP_LoRA/vision", **{"TRAINER.CLIP_LORA.ALPHA": 2.0}).load_model(str(tmp_path / "run"))
    with pytest.raises(CheckpointError, match=r"missing text.0.k.A.*trained with R 2, ENCODER vision, PARAMS"):
        build("CLIP_LoRA").load_model(str(tmp_path / "run"))


@pytest.mark.parametrize(
    ("encoder", "position", "n_text", "n_vision", "text", "vision"),
    [
        ("both", "half-up", 6, 12, range(6, 12), range(12, 24)),  # ViT-L/14
        ("both", "bottom", 4, 4, range(4), range(4)),
        ("vision", "top3", 0, 3, (), range(9, 12)),
        ("text", "all", 12, 0, range(12), ()),
    ],
)
def test_which_layers_a_released_file_has(encoder, position, n_text, n_vision, text, vision, tmp_path):
    learner = torch.nn.Module()
    for tower, count, width in (("text", n_text, 2), ("vision", n_vision, 3)):
        layers = [torch.nn.ModuleDict({"v": LowRank(width, width, 1, 1.0, 0.0)}) for _ in range(count)]
        learner.add_module(tower, torch.nn.ModuleDict({str(number): layer for number, layer in enumerate(layers)}))
    file = tmp_path / "lora_weights.pt"
    torch.save(released_file(learner, encoder=encoder, position=position), file)
    expected = [(tower, i) for tower, layers in (("text", text), ("vision", vision)) for i in layers]
    assert list(read_trained(file).tensors) == [f"{tower}.{i}.v.{m}" for tower, i in expected for m in "AB"]


@pytest.mark.parametrize(
    "change",
    [
        {"weights": {"layer_0": {}}},
        {"weights": {"layer_1": {"q_proj": {"w_lora_A": torch.ones(1, 2)}}}},
        {"weights": 3},
        {"metadata": {"encoder": "text", "position": "all"}},
        {"metadata": {"encoder": "text", "position": "mid", "alpha": 1}},  # of one layer, which no tower has there
    ],
)
def test_a_file_of_another_layout_is_refused_in_a_line(change, tmp_path, capsys):
    whole = {"weights": {"layer_0": {"q_proj": {"w_lora_A": torch.ones(1, 2), "w_lora_B": torch.ones(2, 1)}}}}
    whole["metadata"] = {"encoder": "text", "position": "all", "alpha": 1}
    torch.save(whole | change, tmp_path / "file.pt")
    assert main(["show", str(tmp_path / "file.pt")]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert "is not as CLIP-LoRA's code saves its weights" in line
