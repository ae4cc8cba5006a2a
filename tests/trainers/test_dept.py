"""DePT: which classes the second head predicts, how the two heads are fused, and other hosts than ours."""

import pytest
import torch
from torch.nn import functional as F

from dassl.engine import TRAINER_REGISTRY
from results.evaluate import evaluate_class_splits
from tests.trainers.small_runs import build, configuration, first_batch, logits_of, stir, train_on, trained_tensors
from trainers.bmip import BMIP
from trainers.coprompt import CoPrompt
from trainers.dept import ChannelAdjustedHead, WithDePT
from trainers.hicropl import HiCroPL
from trainers.kgcoop import KgCoOp
from trainers.maple import MaPLe
from trainers.mma import MMA
from trainers.tcp import TCP

HOSTS = {"CoOp_DePT": "CoOp", "PromptSRC_DePT": "PromptSRC"}


@pytest.fixture(scope="module")
def images():
    return torch.randn(4, 3, 48, 48, generator=torch.Generator().manual_seed(4))


def moved(case, *output, **options):
    trainer = build(case, *output, **options)
    stir(trainer)
    return trainer


@torch.no_grad()
def both_heads(trainer, images):
    """Logits of image-text matching and of the second head, which has a column for each trained class."""
    output = trainer.model.outputs(images)
    return output.logits, trainer.model.prompt_learner.head.of_images(output.raw_image)


def host_of(trainer, name):
    """The host alone, with the same prompts."""
    host, own = build(name), trained_tensors(trainer)
    host.model.prompt_learner.load_state_dict({n: t for n, t in own.items() if not n.startswith("head.")})
    return host


# Which classes


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        (["cat", "dog", "crane", "crane"], [0, 1, 2, 3]),
        (["crane", "cat"], [2, 0]),
        (["cat", "bird"], None),
        (["cat", "cat"], None),  # one was trained
        (["Cat"], None),
    ],
)
def test_columns(wanted, expected):
    assert ChannelAdjustedHead(8, ["cat", "dog", "crane", "crane"]).columns_of(wanted) == expected


@pytest.mark.parametrize("weight", [0.0, 0.7, 1.0])
@pytest.mark.parametrize("order", [[0, 1, 2, 3, 4], [4, 2], [3]])
def test_trained_classes_get_the_mean_of_both_heads_probabilities(weight, order, images):
    trainer = moved("CoOp_DePT", **{"TRAINER.DEPT.LAMBDA": weight})
    trainer.model.set_classes([trainer.train_classnames[i] for i in order])
    matched, second = both_heads(trainer, images)
    expected = weight * second[:, order].softmax(1) + (1 - weight) * matched.softmax(1)
    logits = logits_of(trainer, images)
    assert logits.isfinite().all()
    torch.testing.assert_close(logits.softmax(1), expected)


def test_the_released_code_averages_logits(images):
    trainer = moved("CoOp_DePT", **{"TRAINER.DEPT.FUSION": "logits"})
    matched, second = both_heads(trainer, images)
    torch.testing.assert_close(logits_of(trainer, images), 0.7 * second + 0.3 * matched)


@pytest.mark.parametrize("name", HOSTS)
def test_new_classes_and_mixed_ones_get_the_hosts_prediction(name, images):
    trainer = moved(name)
    host = host_of(trainer, HOSTS[name])
    for split in ("new", "all"):
        for each in (trainer, host):
            each.set_class_split(split)
        torch.testing.assert_close(logits_of(trainer, images), logits_of(host, images), atol=1e-4, rtol=0)
        assert trainer.logits_kind == "image-text matching"  # as results.json says
    trainer.set_class_split("base")
    assert trainer.logits_kind == "both heads"
    assert not torch.allclose(logits_of(trainer, images), logits_of(host_of(trainer, HOSTS[name]), images), atol=0.1)


# What is trained


@pytest.mark.parametrize("name", HOSTS)
def test_loss(name):
    trainer = moved(name)
    host, (images, labels) = host_of(trainer, HOSTS[name]), trainer.parse_batch_train(first_batch(trainer))
    loss, alone = (t.objective(t.model, images, labels) for t in (trainer, host))
    output, head = loss.output, trainer.model.prompt_learner.head
    pictures = head.classifier(output.raw_image * head.image_scale + head.image_shift)
    texts = head.classifier(output.raw_text * head.text_scale + head.text_shift)[labels]
    second = (F.cross_entropy(pictures, labels) + F.cross_entropy(texts, labels)) / 2
    matched = F.cross_entropy(alone.output.logits, labels)
    torch.testing.assert_close(loss.total, alone.total - 0.7 * matched + 0.7 * second, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(output.logits, alone.output.logits, rtol=1e-4, atol=1e-4)


def test_the_second_head_learns_at_a_rate_of_its_own():
    trainer = build("CoOp_DePT", **{"OPTIM.WARMUP_EPOCH": -1, "OPTIM.LR": 0.01})
    names = {id(tensor): name for name, tensor in trained_tensors(trainer).items()}
    rest, head = trainer.optim.param_groups
    assert (rest["lr"], head["lr"]) == (0.01, pytest.approx(0.065))
    assert [names[id(p)] for p in rest["params"]] == ["ctx"]
    assert len(head["params"]) == 6


# Evaluation


@pytest.mark.parametrize("name", HOSTS)
def test_reused_features_keep_their_norms(name):
    found = []
    for reuse in (True, False):
        trainer = moved(name, **{"FEATURES.REUSE": reuse})
        assert trainer.image_features_follow == "prompts"
        metrics = evaluate_class_splits(trainer, trainer.cfg, ("base", "new", "all"))
        found.append({split: numbers["confusion"] for split, numbers in metrics.items()})
    assert found[0] == found[1]


# Other hosts, as a fork adds them


@pytest.mark.parametrize("host", [KgCoOp, MaPLe, CoPrompt, TCP, MMA, HiCroPL, BMIP])
def test_any_host_takes_a_second_head(host, images):
    name = host.__name__
    kind = type(f"{name}_DePT", (WithDePT, host), {})
    trainer = kind(configuration(name))
    batch = first_batch(trainer)
    before = {key: tensor.detach().clone() for key, tensor in trained_tensors(trainer).items()}
    for _ in range(2):
        summary = train_on(trainer, batch)
    assert {"loss_ce", "loss_cat"} <= set(summary)
    assert all(tensor.grad is not None and tensor.grad.any() for tensor in trained_tensors(trainer).values())
    assert set(before) > {"head.classifier.weight"}
    assert logits_of(trainer, images).isfinite().all()
    assert trainer.resume_state()["objective_step"] == (2 if host is CoPrompt else 0)
    if host is CoPrompt:
        trainer.load_resume_state({**trainer.resume_state(), "objective_step": 7})
        assert trainer.objective.host.step == 7


def test_a_host_that_joins_frozen_features_keeps_its_prediction(images):
    """Image-text matching has the joined features still, and the second head gets them with their norms."""
    trainer = type("HiCroPL_DePT", (WithDePT, HiCroPL), {})(configuration("HiCroPL"))
    stir(trainer)
    with torch.no_grad():
        output, alone = trainer.model.outputs(images), host_of(trainer, "HiCroPL").model.outputs(images)
    torch.testing.assert_close(output.logits, alone.logits, atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(F.normalize(output.raw_image, dim=-1), alone.image_features)
    assert (output.raw_image.norm(dim=-1) - 1).abs().min() > 0.1


@pytest.mark.parametrize(
    ("host", "reason"),
    [
        ("CoCoOp", "has one per image"),
        ("ProDA", "has its own classifier"),
        ("MMRL", "has its own classifier"),
    ],
)
def test_a_host_that_classifies_otherwise_is_refused(host, reason):
    kind = type(f"{host}_DePT", (WithDePT, TRAINER_REGISTRY.get(host)), {})
    with pytest.raises(ValueError, match=f"{host}_DePT: DePT's second head.*{reason}"):
        kind(configuration(host))


def test_a_broken_second_head_is_noticed(images):
    trainer = moved("CoOp_DePT")
    with torch.no_grad():
        trainer.model.prompt_learner.head.classifier.bias[0] = torch.nan
    with trainer.model.evaluating() as watch, torch.no_grad():
        trainer.model(images)
        with pytest.raises(FloatingPointError, match="the logits of .* are infinite or NaN"):
            watch.heed([])
