"""MMA: the gradients of a scaled branch, the layer that both towers share, and what stays as CLIP has it."""

import clip
import pytest
import torch
from torch.nn import functional as F

from prompting import PromptedCLIP, resolve_precision
from tests.clips import CLASSNAMES
from tests.trainers.small_runs import build, first_batch, logits_of, stir, trained_tensors
from trainers.mma import Adapter, MMALearner, starting_layer

FP32 = resolve_precision("fp32", "cpu")
SCALE = 0.01


@pytest.fixture
def branch():
    generator = torch.Generator().manual_seed(0)
    return Adapter(12, 5, SCALE, generator), starting_layer(5, 5, generator), torch.randn(3, 7, 12, requires_grad=True)


def test_the_scale_slows_what_goes_back_and_not_the_adapter(branch):
    """As the released code; plain differentiation of the same sum would scale both."""
    adapter, shared, rows = branch
    parameters = [*adapter.parameters(), *shared.parameters()]
    unscaled = adapter.up(F.relu(shared(F.relu(adapter.down(rows)))))
    torch.testing.assert_close(adapter(shared, rows), SCALE * unscaled)
    given = torch.randn(3, 7, 12)
    of_rows, *of_parameters = torch.autograd.grad(unscaled, [rows, *parameters], given)
    ours_of_rows, *ours = torch.autograd.grad(adapter(shared, rows), [rows, *parameters], given)
    torch.testing.assert_close(ours_of_rows, SCALE * of_rows)
    for gradient, expected in zip(ours, of_parameters, strict=True):
        torch.testing.assert_close(gradient, expected)


def test_the_start_has_the_released_codes_spread():
    layer = starting_layer(300, 200, torch.Generator().manual_seed(1))
    assert layer.weight.std().item() == pytest.approx((2 / 200) ** 0.5, rel=0.02)
    assert not layer.bias.any()


def test_without_what_is_added_it_is_clip(small_clip, some_images):
    learner = MMALearner(small_clip, "a photo of a", 1, 3, 8, 0.1, torch.Generator().manual_seed(0))
    model = PromptedCLIP(small_clip, learner, CLASSNAMES, FP32)
    texts = [f"a photo of a {name.replace('_', ' ')}." for name in CLASSNAMES]
    clips = [small_clip.encode_image(some_images), small_clip.encode_text(clip.tokenize(texts))]
    changed = model.outputs(some_images)
    for adapters in (learner.text_adapters, learner.vision_adapters):
        for adapter in adapters.values():
            torch.nn.init.zeros_(adapter.up.weight)
    output = model.outputs(some_images)
    ours = [output.image_features, output.text_features]
    for feature, expected, before in zip(ours, clips, (changed.image_features, changed.text_features), strict=True):
        expected = F.normalize(expected, dim=-1)
        torch.testing.assert_close(feature, expected, atol=1e-5, rtol=1e-5)
        assert (before - expected).abs().max() > 1e-3


@pytest.mark.parametrize("tower", ["text", "vision"])
def test_either_tower_alone_trains_the_shared_layers(tower):
    trainer = build("MMA")
    images, _ = trainer.parse_batch_train(first_batch(trainer))
    output = trainer.model.outputs(images)
    feature = output.text_features if tower == "text" else output.image_features
    feature.square().sum(0)[0].backward()
    moved = {name for name, tensor in trained_tensors(trainer).items() if tensor.grad is not None and tensor.grad.any()}
    other = {"text": "vision", "vision": "text"}[tower]
    assert {name.partition(".")[0] for name in moved} == {"shared", f"{tower}_adapters"}
    assert {f"shared.{layer}.weight" for layer in (2, 3, 4)} <= moved
    assert not any(name.startswith(other) for name in moved)


def test_what_is_reused():
    """Image features follow the trained tensors; the text is encoded at every step, and once in an evaluation."""
    trainer = build("MMA")
    assert trainer.image_features_follow == "prompts"
    assert not trainer.model.prompt_learner.text_is_frozen
    images = torch.randn(2, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    before, calls = logits_of(trainer, images), []
    trainer.model.text_encoder.register_forward_hook(lambda *args: calls.append(1))
    stir(trainer)
    assert not torch.equal(logits_of(trainer, images), before)
    with trainer.model.evaluating(), torch.no_grad():
        for _ in range(3):
            trainer.model(images)
    assert len(calls) == 2
