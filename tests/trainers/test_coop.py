"""CoOp, CoCoOp and KgCoOp: what their context starts as, and what they reduce to."""

import clip
import pytest
import torch
from torch.nn import functional as F

from prompting import PromptedCLIP, resolve_precision
from prompting.model import ensemble, template_features
from prompting.towers.text import TextEncoder
from tests.clips import CLASSNAMES
from tests.trainers.small_runs import build, first_batch
from trainers.cocoop import CoCoOpLearner
from trainers.coop import CoOpLearner
from trainers.objectives import CrossEntropy, KnowledgeGuided

FP32 = resolve_precision("fp32", "cpu")
WORDS = "a photo of a"


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def zero_shot(model, images, template="a photo of a {}."):
    """Logits of clip's own encoders."""
    texts = [template.format(name.replace("_", " ")) for name in CLASSNAMES]
    with torch.no_grad():
        text = F.normalize(model.encode_text(clip.tokenize(texts)), dim=-1)
        return model.logit_scale.exp() * F.normalize(model.encode_image(images), dim=-1) @ text.T


@pytest.mark.parametrize("own_classes", [None, CLASSNAMES])
def test_words_start_as_zero_shot_clip(small_clip, some_images, own_classes):
    learner = CoOpLearner(small_clip, 16, WORDS, own_classes=own_classes, generator=seeded())
    assert learner.ctx.shape == ((4, 128) if own_classes is None else (len(CLASSNAMES), 4, 128))
    logits = PromptedCLIP(small_clip, learner, CLASSNAMES, FP32)(some_images)
    torch.testing.assert_close(logits, zero_shot(small_clip, some_images), atol=1e-4, rtol=0)


@pytest.mark.parametrize(("position", "template"), [("front", "{} a photo of a."), ("middle", "a photo {} of a.")])
def test_positions_of_the_class_name(small_clip, some_images, position, template):
    learner = CoOpLearner(small_clip, 4, WORDS, position, generator=seeded())
    logits = PromptedCLIP(small_clip, learner, ["cat", "dog"], FP32)(some_images)
    texts = clip.tokenize([template.format(name) for name in ("cat", "dog")])
    expected = (
        F.normalize(small_clip.encode_image(some_images), dim=-1) @ F.normalize(small_clip.encode_text(texts), dim=-1).T
    )
    torch.testing.assert_close(logits / 100, expected, atol=1e-6, rtol=1e-5)


def test_class_specific_context_trains_each_class_alone(small_clip, some_images):
    learner = CoOpLearner(small_clip, 4, own_classes=CLASSNAMES, generator=seeded())
    output = PromptedCLIP(small_clip, learner, CLASSNAMES, FP32)(some_images)
    output[:, 2].sum().backward()
    assert [bool(gradient.any()) for gradient in learner.ctx.grad] == [name == CLASSNAMES[2] for name in CLASSNAMES]


@pytest.mark.parametrize("kind", [CoOpLearner, CoCoOpLearner])
@pytest.mark.parametrize("n_ctx", [2, 16])
def test_words_decide_the_number_of_vectors(small_clip, kind, n_ctx):
    """As published: CTX_INIT overrides N_CTX."""
    assert len(kind(small_clip, n_ctx, WORDS).ctx) == 4


def test_cocoop_without_its_meta_net_is_coop(small_clip, some_images):
    conditional, plain = (kind(small_clip, 4, generator=seeded()) for kind in (CoCoOpLearner, CoOpLearner))
    with torch.no_grad():
        conditional.meta_net.linear2.weight.zero_()
        conditional.meta_net.linear2.bias.zero_()
    logits = [PromptedCLIP(small_clip, learner, CLASSNAMES, FP32)(some_images) for learner in (conditional, plain)]
    torch.testing.assert_close(logits[0], logits[1], atol=1e-4, rtol=0)


def test_cocoops_context_is_each_images_own(small_clip, some_images):
    learner = CoCoOpLearner(small_clip, 4, generator=seeded())
    model = PromptedCLIP(small_clip, learner, CLASSNAMES, FP32)
    features = F.normalize(small_clip.encode_image(some_images), dim=-1)
    hidden = torch.relu(features @ learner.meta_net.linear1.weight.T + learner.meta_net.linear1.bias)
    shift = hidden @ learner.meta_net.linear2.weight.T + learner.meta_net.linear2.bias
    for index, image in enumerate(some_images):
        fixed = CoOpLearner(small_clip, 4, generator=seeded())
        fixed.ctx = torch.nn.Parameter(learner.ctx + shift[index])
        expected = PromptedCLIP(small_clip, fixed, CLASSNAMES, FP32)(image[None])
        torch.testing.assert_close(model(image[None]), expected, atol=1e-4, rtol=0)


def test_kgcoops_loss(small_clip, some_images):
    learner = CoOpLearner(small_clip, 4, generator=seeded())
    model = PromptedCLIP(small_clip, learner, CLASSNAMES, FP32)
    teacher = ensemble(template_features(TextEncoder(small_clip), CLASSNAMES, ["a photo of a {}."], FP32))
    labels = torch.tensor([0, 3, 5])
    cross_entropy = CrossEntropy()(model, some_images, labels).total
    loss = KnowledgeGuided(teacher, 8.0)(model, some_images, labels)
    squared = (loss.output.text_features - teacher).square().sum(1).mean()  # of unit vectors: 2 - 2 cos
    torch.testing.assert_close(loss.total, cross_entropy + 8 * squared / 2)
    assert torch.equal(KnowledgeGuided(teacher, 0.0)(model, some_images, labels).total, cross_entropy)
    assert not teacher.requires_grad


def test_kgcoop_starts_at_its_teacher_where_the_words_are_the_template():
    trainer = build("KgCoOp", **{"TRAINER.KGCOOP.CTX_INIT": "a photo of the"})
    images, labels = trainer.parse_batch_train(first_batch(trainer))
    assert trainer.objective(trainer.model, images, labels).terms["loss_text"].item() == pytest.approx(0, abs=1e-6)
