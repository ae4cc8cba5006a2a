"""LayerNorm tuning: starts as CLIP, trains the LayerNorms of the blocks alone, and leaves CLIP's own as they are."""

import clip
import torch
from torch.nn import functional as F

from prompting import PromptedCLIP, resolve_precision
from tests.clips import CLASSNAMES
from tests.trainers.small_runs import build, first_batch, train_on, trained_tensors
from trainers.layernorm_tuning import LayerNormLearner


def test_the_start_is_clip(small_clip, some_images):
    layers = range(len(small_clip.transformer.resblocks))
    model = PromptedCLIP(
        small_clip,
        LayerNormLearner(small_clip, "a photo of a", layers, layers),
        CLASSNAMES,
        resolve_precision("fp32", "cpu"),
    )
    output = model.outputs(some_images)
    texts = [f"a photo of a {name.replace('_', ' ')}." for name in CLASSNAMES]
    clips = small_clip.encode_image(some_images), small_clip.encode_text(clip.tokenize(texts))
    for feature, expected in zip((output.image_features, output.text_features), clips, strict=True):
        torch.testing.assert_close(feature, F.normalize(expected, dim=-1), atol=1e-5, rtol=1e-5)


def test_what_is_trained():
    trainer = build("LayerNormTuning")
    names = {name.split(".", 2)[2] for name in trained_tensors(trainer)}
    assert names == {f"{norm}.{part}" for norm in ("ln_1", "ln_2") for part in ("weight", "bias")}
    visual = trainer.model.image_encoder.visual
    clips = visual.transformer.resblocks[0].ln_1.weight, visual.ln_pre.weight, visual.ln_post.bias
    before = [tensor.clone() for tensor in clips]
    train_on(trainer, first_batch(trainer))
    assert all(torch.equal(tensor, kept) for tensor, kept in zip(clips, before, strict=True))
    assert trainer.image_features_follow == "prompts"
    assert trainer.objective.recordable


def test_a_tower_alone():
    text, vision = build("LayerNormTuning/text"), build("LayerNormTuning/vision")
    assert (text.image_features_follow, text.model.prompt_learner.text_is_frozen) == ("image", False)
    assert (vision.image_features_follow, vision.model.prompt_learner.text_is_frozen) == ("prompts", True)
