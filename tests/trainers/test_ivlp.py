"""IVLP, VPT and MaPLe: which tower is prompted, and what stays as CLIP has it."""

import clip
import pytest
import torch
from torch.nn import functional as F

from prompting import PromptedCLIP, resolve_precision
from tests.clips import CLASSNAMES
from tests.trainers.small_runs import build
from trainers.ivlp import IVLPLearner
from trainers.maple import MaPLeLearner

FP32 = resolve_precision("fp32", "cpu")
WORDS = "a photo of a"


def ivlp(model, text_depth, vision_depth, n_text=2, n_vision=3):
    generator = torch.Generator().manual_seed(0)
    return IVLPLearner(model, n_text, n_vision, WORDS, text_depth, vision_depth, generator)


def own_text(model):
    texts = [f"{WORDS} {name.replace('_', ' ')}." for name in CLASSNAMES]
    return F.normalize(model.encode_text(clip.tokenize(texts)), dim=-1)


def test_language_only_leaves_the_images(small_clip, some_images):
    learner = ivlp(small_clip, text_depth=3, vision_depth=0)
    output = PromptedCLIP(small_clip, learner, CLASSNAMES, FP32).outputs(some_images)
    image = F.normalize(small_clip.encode_image(some_images), dim=-1)
    torch.testing.assert_close(output.image_features, image, atol=1e-5, rtol=1e-5)
    assert not output.image_features.requires_grad
    assert {name.partition(".")[0] for name in learner.state_dict()} == {"ctx", "text_prompts"}
    assert (output.text_features - own_text(small_clip)).abs().max() > 1e-3


@pytest.mark.parametrize("n_text", [2, 8])  # of which none is learned
def test_vision_only_leaves_the_text(small_clip, some_images, n_text):
    learner = ivlp(small_clip, text_depth=0, vision_depth=3, n_text=n_text)
    model = PromptedCLIP(small_clip, learner, CLASSNAMES, FP32)
    output = model.outputs(some_images)
    torch.testing.assert_close(output.text_features, own_text(small_clip), atol=1e-5, rtol=1e-5)
    assert not output.text_features.requires_grad
    assert {name.partition(".")[0] for name in learner.state_dict()} == {"vision_tokens", "vision_prompts"}
    model.set_classes(CLASSNAMES[:2])  # the text that was kept is not used for other classes
    assert model(some_images).shape == (3, 2)


@pytest.mark.parametrize(("text", "vision"), [(1, 4), (4, 1), (2, 3)])
def test_depths_are_independent(small_clip, some_images, text, vision):
    learner = ivlp(small_clip, text, vision)
    assert (len(learner.text_prompts), len(learner.vision_prompts)) == (text - 1, vision - 1)
    PromptedCLIP(small_clip, learner, CLASSNAMES, FP32)(some_images).softmax(1)[:, 0].sum().backward()
    assert all(parameter.grad.any() for parameter in learner.parameters())


def test_one_text_token_of_the_words_is_learned_and_the_others_stay(small_clip, some_images):
    """At depth 1 and its start, a prompt made of the words is zero-shot CLIP's."""
    output = PromptedCLIP(small_clip, ivlp(small_clip, 1, 0, n_text=1), CLASSNAMES, FP32).outputs(some_images)
    torch.testing.assert_close(output.text_features, own_text(small_clip), atol=1e-5, rtol=1e-5)


def test_vpts_text_is_the_words_on_every_data_set():
    """Digits has "a photo of the {}." of its own; VPT as published takes CTX_INIT instead."""
    trainer = build("VPT/shallow")
    assert list(trainer.model.prompt_learner.state_dict()) == ["vision_tokens"]
    text = trainer.model.text_features()
    assert not text.requires_grad
    other = build("VPT/shallow", **{"TRAINER.VPT.CTX_INIT": "a bold"}).model.text_features()
    assert (text - other).abs().max() > 1e-3


def test_maples_coupling_functions_start_equal_and_apart_from_the_first(small_clip):
    learner = MaPLeLearner(small_clip, 2, WORDS, 4, torch.Generator().manual_seed(0))
    first, *others = learner.projections
    assert all(torch.equal(first.weight, other.weight) for other in others)
    assert len({layer.weight.data_ptr() for layer in learner.projections}) == 3
    assert not torch.equal(first.weight, learner.proj.weight)


def test_maples_image_prompts_are_projected_text_prompts(small_clip):
    learner = MaPLeLearner(small_clip, 2, WORDS, 3, torch.Generator().manual_seed(0))
    prompts = learner()
    torch.testing.assert_close(prompts.vision.tokens, learner.proj(learner.ctx))
    for layer in (1, 2):
        expected = learner.projections[layer - 1](learner.text_prompts[layer - 1])
        torch.testing.assert_close(prompts.vision.deep[layer], expected)


def test_maples_words_beyond_the_learned_ones_stay(small_clip, some_images):
    """At depth 1, text features at the start are zero-shot CLIP's: "of a" stands after the two learned vectors."""
    learner = MaPLeLearner(small_clip, 2, WORDS, 1)
    output = PromptedCLIP(small_clip, learner, CLASSNAMES, FP32).outputs(some_images)
    torch.testing.assert_close(output.text_features, own_text(small_clip), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("n_ctx", [4, 5])
def test_maple_starts_at_random_when_the_words_do_not_suffice(small_clip, n_ctx):
    learner = MaPLeLearner(small_clip, n_ctx, WORDS, 2, torch.Generator().manual_seed(0))
    assert (learner.words == WORDS) == (n_ctx == 4)
    assert len(learner.ctx) == n_ctx
