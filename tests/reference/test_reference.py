"""The small CLIP is the one the reference values were computed on, and the reference files are whole."""

import hashlib

import clip
import pytest
import torch
from torch.nn import functional

from tests.reference import GradientReference, load_record, load_reference, probe_dots, reference_names
from tests.reference.small_clip import named_uniform, prompt_tensor, small_clip, small_images

FINGERPRINTS = {
    "positional_embedding": "ead2845de8d6cc21",
    "visual.conv1.weight": "f22998d69c60fee7",
    "transformer.resblocks.3.mlp.c_proj.weight": "605037d112a0ea99",
    "visual.transformer.resblocks.0.ln_1.weight": "bd82974f01dcec1d",
}
CROSS_ENTROPY_ONLY = (
    "coop",
    "cocoop",
    "maple",
    "ivlp",
    "vpt",
    "bmip",
    "mma",
    "clip_lora",
    "layernorm",
    "taskres",
    "clip_adapter",
)


@pytest.fixture(scope="module")
def model():
    return small_clip()


@pytest.mark.parametrize("name", FINGERPRINTS)
def test_weights_are_rebuilt_bit_for_bit(model, name):
    values = model.state_dict()[name].contiguous().numpy().astype("<f4").tobytes()
    assert hashlib.sha256(values).hexdigest()[:16] == FINGERPRINTS[name]


def test_images_do_not_depend_on_how_many_are_asked_for():
    assert torch.equal(small_images(2), small_images(5)[:2])
    assert not torch.equal(small_images(2)[0], small_images(2)[1])


def test_prompt_values_depend_on_the_name():
    assert not torch.equal(prompt_tensor("prompt_learner.ctx", (2, 512)), prompt_tensor("ctx", (2, 512)))
    assert prompt_tensor("prompt_learner.ctx", (2, 512)).std() == pytest.approx(0.02, rel=0.05)


@pytest.mark.parametrize("name", ["zeroshotclip_oxfordpets", "zeroshotclip_eurosat"])
def test_the_clip_package_gives_upstreams_zero_shot_logits(model, name):
    record = load_record(name)
    prompts = [record["templates"][0].format(label.replace("_", " ")) for label in record["class_names"]]
    with torch.no_grad():
        logits, _ = model(small_images(4), clip.tokenize(prompts))
    torch.testing.assert_close(logits, torch.tensor(record["logits"]), atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", reference_names())
def test_reference_file_is_whole(name):
    reference = load_reference(name)
    assert reference.logits.shape == (len(reference.labels), len(reference.class_names))
    assert set(reference.trainable_shapes) == set(reference.gradients) | set(reference.without_gradient)
    assert reference.gradients
    for gradient in reference.gradients.values():
        if gradient.full is None:
            continue
        assert torch.allclose(gradient.full.reshape(-1)[:: gradient.stride][: len(gradient.samples)], gradient.samples)
        assert gradient.full.norm().item() == pytest.approx(gradient.norm, rel=1e-6)
        expected = pytest.approx(gradient.probe_dots, abs=1e-5 * gradient.norm)
        assert probe_dots(gradient.name, gradient.full) == expected


@pytest.mark.parametrize("name", [name for name in reference_names() if name.startswith(CROSS_ENTROPY_ONLY)])
def test_loss_is_the_cross_entropy_of_the_logits(name):
    reference = load_reference(name)
    expected = functional.cross_entropy(reference.logits, reference.labels).item()
    assert reference.loss == pytest.approx(expected, abs=1e-5)


def _reference_of(values: torch.Tensor, keep_full: bool) -> GradientReference:
    stride = max(1, (values.numel() // 64 - 1) | 1)
    samples = values.reshape(-1)[::stride][:64].double()
    full = values.double() if keep_full else None
    dots = tuple(probe_dots("w", values))
    return GradientReference("w", tuple(values.shape), values.double().norm().item(), dots, stride, samples, full)


@pytest.mark.parametrize("keep_full", [True, False])
def test_relative_error_sees_a_perturbation(keep_full):
    values = named_uniform("values", (96, 100))
    reference = _reference_of(values, keep_full)
    assert reference.relative_error(values) < 1e-9
    noise = named_uniform("noise", (96, 100))
    assert 0.002 < reference.relative_error(values + 0.01 * noise) < 0.05


def test_relative_error_refuses_another_shape():
    reference = _reference_of(named_uniform("values", (4, 8)), True)
    with pytest.raises(ValueError, match=r"\(8, 4\)"):
        reference.relative_error(torch.zeros(8, 4))
