"""ProDA: its bound against a brute-force covariance, the order in which prompts are taken, and its classifier."""

import pytest
import torch
from torch.nn import functional as F

from prompting import PromptedCLIP, resolve_precision
from tests.clips import CLASSNAMES
from trainers.coop import CoOpLearner
from trainers.proda import ProDALearner, ProDAModel, PromptDistribution

FP32 = resolve_precision("fp32", "cpu")
N_CTX, N_PROMPT = 4, 8


@pytest.fixture
def model(small_clip):
    learner = ProDALearner(small_clip, N_CTX, N_PROMPT, torch.Generator().manual_seed(0))
    with torch.no_grad():
        learner.ctx.mul_(20)
    return ProDAModel(small_clip, learner, CLASSNAMES, FP32)


def test_class_names_stand_at_three_positions(model):
    assert model.prompt_learner.positions == ["front"] * 2 + ["middle"] * 2 + ["end"] * 4


def test_the_classifier_is_the_mean_of_all_prompts(model, small_clip, some_images):
    features = []
    for context, position in zip(model.prompt_learner.ctx, model.prompt_learner.positions, strict=True):
        single = CoOpLearner(small_clip, N_CTX, position=position)
        single.ctx = torch.nn.Parameter(context.detach().clone())
        features.append(PromptedCLIP(small_clip, single, CLASSNAMES, FP32).text_features())
    mean = torch.stack(features).mean(0)  # not normalised again, as published
    image = F.normalize(small_clip.encode_image(some_images), dim=-1)
    torch.testing.assert_close(model(some_images), 100 * image @ mean.T, atol=1e-4, rtol=0)


def test_the_bound_is_the_covariances(model, some_images):
    """sigma[b, j] = sum_d f_d^2 (C_yy - 2 C_yj + C_jj)_d with C the prompts' covariance over m + 1, class by class."""
    labels = torch.tensor([0, 3, 5])
    objective = PromptDistribution(N_PROMPT, 4, 0.0, seed=1)
    loss = objective(model, some_images, labels)
    z = model.features_of(PromptDistribution(N_PROMPT, 4, 0.0, seed=1)._draw())
    mean = z.mean(0)
    image = model.image_features(some_images)
    bound = 100 * image @ mean.T
    for b, y in enumerate(labels.tolist()):
        for j in range(len(CLASSNAMES)):
            difference = (z[:, y] - mean[y]) - (z[:, j] - mean[j])  # (m, dim)
            variance = (image[b] ** 2 * difference**2).sum() / (len(z) + 1)
            bound[b, j] += 0.5 * 100**2 * variance
    torch.testing.assert_close(loss.output.logits, bound, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(loss.total, F.cross_entropy(bound, labels), rtol=1e-4, atol=1e-5)


def test_every_prompt_is_taken_once_per_cycle_in_an_order_of_its_own():
    objective = PromptDistribution(N_PROMPT, 2, 0.0, seed=3)
    cycles = [[objective._draw() for _ in range(4)] for _ in range(3)]
    for cycle in cycles:
        assert sorted(prompt for step in cycle for prompt in step) == list(range(N_PROMPT))
    assert cycles[0] != cycles[1]
    again = PromptDistribution(N_PROMPT, 2, 0.0, seed=3)
    again.step = 4  # as after a resume
    assert again._draw() == cycles[1][0]


def test_the_term_that_keeps_prompts_apart(model, some_images):
    labels = torch.tensor([0, 3, 5])
    plain, apart = (PromptDistribution(N_PROMPT, 4, weight, 1)(model, some_images, labels) for weight in (0.0, 0.5))
    features = model.class_free_features()
    cosine = [features[i] @ features[j] for i in range(N_PROMPT) for j in range(N_PROMPT) if i != j]
    expected = torch.stack(cosine).abs().mean()
    torch.testing.assert_close(apart.terms["loss_orthogonal"], expected)
    torch.testing.assert_close(apart.total, plain.total + 0.5 * expected)
    assert plain.terms == {}
