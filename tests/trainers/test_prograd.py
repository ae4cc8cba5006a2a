"""ProGrad: two losses whose gradients meet, in every way in which a step is taken, and what its context starts as."""

import pytest
import torch
from torch.nn import functional as F

from prompting.learner import context_parameter
from tests.trainers.replaying import record_on_cpu
from tests.trainers.small_runs import build, first_batch, stir, train_on, trained_tensors
from trainers.objectives import Loss, PromptAligned
from trainers.prograd import ProGradLearner
from trainers.step import DeviceStep, differentiable

pytestmark = pytest.mark.filterwarnings("ignore:torch.cuda.amp.GradScaler is enabled")


def moved(**options):
    """A trainer whose prompts are away from their start, where both gradients are zero or nearly."""
    trainer = build("ProGrad", **options)
    stir(trainer)
    return trainer


def gradients(trainer, number):
    """Of a number by the trained tensors, flat."""
    tensors = trained_tensors(trainer).values()
    return torch.cat([g.flatten() for g in torch.autograd.grad(number, list(tensors), retain_graph=True)])


# The rule


def rule(weight=1.0):
    return PromptAligned(torch.empty(0), weight, 1.0).align


@pytest.mark.parametrize("weight", [0.0, 0.5, 1.0])
def test_a_conflicting_gradient_loses_its_component_along_the_general_direction(weight):
    gradient, general = torch.tensor([[3.0, 1.0]]), torch.tensor([[-2.0, 0.0]])
    expected = torch.tensor([[3.0 * (1 - weight), 1.0]])
    torch.testing.assert_close(rule(weight)(gradient, general), expected)
    assert torch.equal(rule(weight)(gradient, -general), gradient)  # no conflict
    assert torch.equal(rule(weight)(gradient, torch.tensor([[0.0, 5.0]])), gradient)


def test_without_a_general_direction_nothing_is_taken_away():
    gradient = torch.tensor([3.0, 1.0])
    assert torch.equal(rule()(gradient, torch.zeros(2)), gradient)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_gradient_that_is_not_finite_shows_in_either_place(value):
    good, bad = torch.tensor([-1.0, 1.0]), torch.tensor([value, 1.0])
    assert not rule()(good, bad).isfinite().all()
    assert not rule()(bad, good).isfinite().all()


# The losses


def test_the_papers_divergence_and_the_published_codes_have_one_gradient():
    trainer = moved(**{"TRAINER.PROGRAD.T": 2.0})
    images, labels = trainer.parse_batch_train(first_batch(trainer))
    loss, temperature = trainer.objective(trainer.model, images, labels), 2.0
    zero_shot = trainer.model.compare(loss.output.image_features, trainer.objective.teacher).logits.detach()
    ours, theirs = (F.log_softmax(logits / temperature, dim=1) for logits in (loss.output.logits, zero_shot))
    divergence = temperature**2 * F.kl_div(ours, theirs, reduction="batchmean", log_target=True)
    entropy = -(temperature**2) * (theirs.exp() * theirs).sum(1).mean()
    torch.testing.assert_close(loss.second, divergence + entropy)
    torch.testing.assert_close(gradients(trainer, loss.second), gradients(trainer, divergence))


def test_weight_zero_is_coop():
    aligned, coop = moved(**{"TRAINER.PROGRAD.LAMBDA": 0.0}), build("CoOp")
    coop.model.prompt_learner = aligned.model.prompt_learner
    coop.model.set_classes(coop.train_classnames)
    images, labels = aligned.parse_batch_train(first_batch(aligned))
    ours, theirs = (t.objective(t.model, images, labels) for t in (aligned, coop))
    met = differentiable(ours, aligned.model.parameters())
    torch.testing.assert_close(gradients(aligned, met), gradients(aligned, theirs.total))


# The steps


def conflict(trainer):
    """Make the general direction the opposite of cross-entropy's, so that there is no step without a projection."""
    objective = trainer.objective

    def opposed(model, images, labels):
        loss = objective(model, images, labels)
        ctx = model.prompt_learner.ctx
        return Loss(loss.total, loss.output, loss.terms, -loss.total + 0.1 * ctx.square().sum(), objective.align)

    trainer.objective = opposed


@pytest.mark.parametrize("way", ["scaled", "device", "replayed", "recomputed"])
def test_every_way_of_taking_a_step_has_the_same_gradient(way):
    first, second = (moved(**{"TRAINER.PROGRAD.LAMBDA": 0.7}) for _ in range(2))
    for trainer in (first, second):
        conflict(trainer)
    if way == "scaled":
        second.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
    elif way == "recomputed":
        second.model.checkpoint_activations()
    else:
        second.device_step = DeviceStep(second, record_on_cpu if way == "replayed" else None)
    batch, plain = first_batch(first), moved()
    summaries = [train_on(trainer, batch) for trainer in (first, second)]
    assert summaries[0] == pytest.approx(summaries[1])
    ours, theirs = (trained_tensors(trainer)["ctx"] for trainer in (first, second))
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-7)
    whole = gradients(plain, plain.objective(plain.model, *plain.parse_batch_train(batch)).total)
    assert F.cosine_similarity(ours.grad.flatten(), whole, dim=0) < 0.99  # something was taken away


def test_a_step_goes_through_the_towers_once(monkeypatch):
    trainer, calls = moved(), []
    encoder = trainer.model.text_encoder
    forward = type(encoder).forward
    monkeypatch.setattr(type(encoder), "forward", lambda self, *args: calls.append(1) or forward(self, *args))
    train_on(trainer, first_batch(trainer))
    assert calls == [1]


def test_overflow_in_the_second_loss_alone_is_skipped_by_the_scaler():
    trainer = moved()
    objective = trainer.objective

    def spoiled(model, images, labels):
        loss, ctx = objective(model, images, labels), model.prompt_learner.ctx
        second = loss.second + (ctx[0, 0] - ctx[0, 0].detach()).abs().sqrt()  # finite, with an infinite slope
        return Loss(loss.total, loss.output, loss.terms, second, loss.meet)

    trainer.objective, before = spoiled, trainer.model.prompt_learner.ctx.detach().clone()
    with pytest.raises(FloatingPointError, match=r"the gradient of prompt_learner\.ctx is infinite or NaN"):
        train_on(trainer, first_batch(trainer))
    trainer.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
    train_on(trainer, first_batch(trainer))
    assert (trainer.skipped_steps, trainer.scaler.get_scale()) == (1, 2.0**15)
    assert torch.equal(trainer.model.prompt_learner.ctx, before)


def test_a_forks_rule_and_a_hook_of_dassl_go_together():
    """The sum is the rule that everyone can check; a trainer's own model_backward gets one scalar, as always."""
    trainer, seen = moved(), []
    objective = trainer.objective

    def summed(model, images, labels):
        loss = objective(model, images, labels)
        return Loss(loss.total, loss.output, loss.terms, loss.second, lambda a, b: a + b)

    def model_backward(self, loss):
        seen.append(loss.item())
        loss.backward()

    trainer.objective = summed
    trainer.__class__ = type("Mine", (type(trainer),), {"model_backward": model_backward})
    batch = first_batch(trainer)
    loss = objective(trainer.model, *trainer.parse_batch_train(batch))
    expected = gradients(trainer, loss.total + loss.second)
    summary = train_on(trainer, batch)
    assert seen == [pytest.approx(summary["loss"])]
    torch.testing.assert_close(trained_tensors(trainer)["ctx"].grad.flatten(), expected, rtol=1e-4, atol=1e-5)


def test_a_second_loss_needs_a_rule():
    one = torch.ones(())
    for extra in ({"second": one}, {"meet": lambda a, b: a}):
        with pytest.raises(ValueError, match=r"second loss and the rule.*give both"):
            Loss(one, None, **extra)


# The context's start


def test_words_end_the_context_and_zeros_begin_it(small_clip):
    learner = ProGradLearner(small_clip, 6, "a photo of a")
    assert not learner.ctx[:2].any()
    assert torch.equal(learner.ctx[2:], context_parameter(small_clip, 4, "a photo of a"))


def test_a_comma_takes_the_place_of_the_last_word(small_clip):
    words = "a type of pet, a photo of a"  # eight words, nine tokens
    learner = ProGradLearner(small_clip, 8, words)
    layout = learner.layout(["cat"])
    assert layout.context[0, :11].tolist() == [-1, *range(8), -1, -1]  # [SOS], learned, "a", "cat"
    assert torch.equal(learner.ctx, context_parameter(small_clip, 8, words))


@pytest.mark.parametrize(
    ("name", "template", "expected"),
    [
        ("OxfordPets", "", "a type of pet, a photo of a {}."),
        ("UCF101", "", "a photo of a person doing {}."),
        ("OxfordPets", "a picture of {}.", "a picture of {}."),
    ],
)
def test_template(name, template, expected):
    trainer = build("ProGrad")
    trainer.cfg = trainer.cfg.clone()
    trainer.cfg.defrost()
    trainer.cfg.DATASET.NAME, trainer.cfg.DATASET.TEMPLATE = name, template
    assert trainer.template == expected
