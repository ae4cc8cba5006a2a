"""HiCroPL: both readings, the released code's evaluation call by call, joined features and sentences."""

import json

import pytest
import torch
from torch.nn import functional as F

from prompting import PromptedCLIP, TowerSizes, resolve_precision
from prompting.model import frozen_image_features
from tests.clips import CLASSNAMES, random_clip
from tests.reference import load_reference, reference_names
from tests.reference.ours import load_upstream_values, trainer_of
from tests.reference.small_clip import small_clip as reference_clip
from tests.reference.small_clip import small_images
from tests.trainers.small_runs import build, first_batch, logits_of, stir, train_on, trained_tensors
from trainers.hicropl import ConsistentWithFrozen, HiCroPLLearner
from trainers.step import DeviceStep
from trainers.templates import PROMPTSRC_TEMPLATES

FP32 = resolve_precision("fp32", "cpu")
OFFICIAL = {"TRAINER.HICROPL.READING": "official"}


@pytest.fixture(autouse=True)
def few_templates(monkeypatch):
    monkeypatch.setattr("trainers.hicropl.PROMPTSRC_TEMPLATES", PROMPTSRC_TEMPLATES[:2])


def learner_of(model, n_ctx=2, depth=4, cross=2, official=False):
    return HiCroPLLearner(
        model, n_ctx, "a photo of a", depth, cross, official, generator=torch.Generator().manual_seed(0)
    )


@pytest.mark.parametrize("name", reference_names("hicropl_"))
@pytest.mark.parametrize("reading", ["paper", "official"])
def test_evaluation_call_by_call(name, reading, tmp_path):
    """The released code's first, second and third call; ours repeats the first until the prompts are overwritten."""
    reference = load_reference(name)
    trainer = trainer_of(reference, reference_clip(), tmp_path, objective=False)
    load_upstream_values(trainer, reference)
    trainer.model.prompt_learner.official = reading == "official"  # what is computed forward is the same
    images = small_images(len(reference.labels))
    for kept in ("logits", "logits_second_call", "logits_third_call"):
        expected = torch.tensor(reference.record[kept])
        for _ in range(2):
            torch.testing.assert_close(logits_of(trainer, images), expected, atol=1e-4, rtol=0)
        trainer.model.prompt_learner.overwrite()
    first, third = (torch.tensor(reference.record[kept]) for kept in ("logits", "logits_third_call"))
    assert (first - third).abs().max() > 0.05  # they do drift


@pytest.mark.parametrize("name", reference_names("hicropl_"))
def test_what_is_trained_is_as_much_as_in_the_released_code(name, tmp_path):
    reference = load_reference(name)
    learner = trainer_of(reference, reference_clip(), tmp_path, objective=False).model.prompt_learner
    shapes = [shape for tensor, shape in reference.trainable_shapes.items() if tensor != "prompt_learner.ctx_t"]
    assert len(shapes) == len(list(learner.parameters()))
    assert sum(torch.Size(shape).numel() for shape in shapes) == sum(p.numel() for p in learner.parameters())
    assert sum(p.requires_grad for p in learner.parameters()) == len(reference.gradients)


def test_the_size_of_the_published_setting():
    """33.2 million numbers in 144 tensors that the released code never trains, and the prompts."""
    model = random_clip(
        **dict(vision_width=768, transformer_width=512, transformer_heads=8, embed_dim=512),
        **dict(vision_layers=12, transformer_layers=12),
    )
    learner = learner_of(model, 16, 12, 6, official=True)
    untrained = [p.numel() for p in learner.parameters() if not p.requires_grad]
    assert (len(untrained), sum(untrained)) == (144, 33_185_280)
    assert sum(p.numel() for p in learner.parameters()) - sum(untrained) == 12 * 16 * (512 + 768)


def test_a_step_of_the_official_reading():
    """Prompts become what the mappers make of them, then the optimiser moves them; nothing else moves."""
    trainer = build("HiCroPL", **OFFICIAL, **{"OPTIM.WARMUP_EPOCH": -1, "OPTIM.LR": 1e-6, "OPTIM.NAME": "sgd"})
    learner = trainer.model.prompt_learner
    before = {name: value.clone() for name, value in learner.state_dict().items()}
    text, vision = ([prompt.detach().clone() for prompt in tower] for tower in learner.mapped())
    summary = train_on(trainer, first_batch(trainer))
    for own, mapped in zip(learner.text_layers + learner.vision_layers, text + vision, strict=True):
        torch.testing.assert_close(own.detach(), mapped, atol=1e-4, rtol=0)
    assert not torch.allclose(learner.vision_tokens, before["vision_tokens"], atol=1e-2)
    moved = {name for name, value in learner.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == set(trained_tensors(trainer))
    assert all(torch.isfinite(torch.tensor(value)) for value in summary.values())


def test_readings_agree_forward_and_part_backward(small_clip, some_images):
    labels, losses, gradients = torch.tensor([1, 0, 4]), {}, {}
    start = learner_of(small_clip).state_dict()
    for reading in ("paper", "official"):
        learner = learner_of(small_clip, official=reading == "official")
        learner.load_state_dict(start)
        model = PromptedCLIP(small_clip, learner, CLASSNAMES, FP32)
        loss = ConsistentWithFrozen(model.class_features(), 2.0, reading == "official")(model, some_images, labels)
        loss.total.backward()
        losses[reading] = loss.total.item()
        gradients[reading] = {name: p.grad for name, p in learner.named_parameters()}
    assert losses["paper"] == pytest.approx(losses["official"], rel=1e-6)
    assert all(gradient.any() for gradient in gradients["paper"].values())
    given = {name for name, gradient in gradients["official"].items() if gradient is not None}
    assert given == {name for name in gradients["paper"] if "prompts" in name or name in ("ctx", "vision_tokens")}
    # The last image layer's prompts are not mapped themselves: the paper's reading adds what the text gets of them.
    ours, theirs = (gradients[reading]["vision_prompts.2"] for reading in ("paper", "official"))
    assert not torch.allclose(ours, theirs)


def test_features_are_joined_with_the_frozen_models(small_clip, some_images):
    learner = learner_of(small_clip)
    model = PromptedCLIP(small_clip, learner, CLASSNAMES, FP32)
    learner.joins_frozen_features = False
    apart = model.outputs(some_images)
    learner.joins_frozen_features = True
    output, frozen = model.outputs(some_images), frozen_image_features(model, some_images)
    torch.testing.assert_close(output.image_features, F.normalize(apart.image_features + frozen, dim=-1))
    joined = F.normalize(apart.text_features + model.class_features(), dim=-1)
    torch.testing.assert_close(output.text_features, joined)
    given = model.image_features(some_images, frozen=torch.zeros_like(frozen))
    torch.testing.assert_close(given, apart.image_features)
    assert learner.image_features_follow == "prompts"


def test_the_loss(small_clip, some_images):
    model = PromptedCLIP(small_clip, learner_of(small_clip), CLASSNAMES, FP32)
    labels = torch.tensor([1, 0, 4])
    loss = ConsistentWithFrozen(model.class_features(), 3.0)(model, some_images, labels)
    output, frozen = model.outputs(some_images), frozen_image_features(model, some_images)
    pairs = [(output.text_features, model.class_features()), (output.image_features, frozen)]
    expected = F.cross_entropy(output.logits, labels) + 3 * sum(1 - (a * b).sum(-1).mean() for a, b in pairs)
    torch.testing.assert_close(loss.total, expected)


@pytest.mark.parametrize("official", [False, True])
def test_which_layers_start_alike(small_clip, official):
    learner = learner_of(small_clip, official=official)
    assert torch.equal(learner.vision_layers[0], learner.vision_layers[3])
    assert not torch.equal(learner.text_layers[1], learner.text_layers[2])
    assert torch.equal(learner.text_pooling[0].attn.in_proj_weight, learner.text_pooling[1].attn.in_proj_weight)
    assert torch.equal(learner.vision_proxies[0], learner.vision_proxies[1]) == official


def test_the_official_reading_on_both_paths():
    trainers = [build("HiCroPL", path=path, **OFFICIAL) for path in ("fast", "plain")]
    gradients = []
    for trainer in trainers:
        stir(trainer)
        images, labels = trainer.parse_batch_train(first_batch(trainer))
        tensors = trained_tensors(trainer)
        loss = trainer.objective(trainer.model, images, labels).total
        gradients.append(torch.autograd.grad(loss, list(tensors.values())))
    for fast, plain in zip(*gradients, strict=True):
        assert F.cosine_similarity(fast.flatten().double(), plain.flatten().double(), dim=0) > 0.999999
    images = torch.randn(3, 3, 48, 48)
    torch.testing.assert_close(*(logits_of(trainer, images) for trainer in trainers), atol=1e-4, rtol=0)


@pytest.mark.parametrize("precision", ["bf16", "fp16", "amp"])
def test_precisions_of_the_official_reading(precision):
    trainer = build("HiCroPL", **OFFICIAL, **{"TRAINER.HICROPL.PREC": precision, "TRAIN.CPU_HALF": True})
    exact = build("HiCroPL", **OFFICIAL)
    losses = [train_on(each, first_batch(each))["loss"] for each in (trainer, exact)]
    assert losses[0] == pytest.approx(losses[1], rel=0.05)
    assert all(p.dtype == p.grad.dtype == torch.float32 for p in trained_tensors(trainer).values())


def test_the_official_reading_resumes_and_steps_on_a_device_alike(tmp_path):
    whole = build("HiCroPL", tmp_path / "whole", **OFFICIAL)
    whole.train()
    parts = build("HiCroPL", tmp_path / "parts", **OFFICIAL, **{"OPTIM.MAX_EPOCH": 2})
    parts.device_step = DeviceStep(parts)
    parts.train()
    for name, value in whole.model.prompt_learner.state_dict().items():
        assert torch.equal(value, parts.model.prompt_learner.state_dict()[name]), name
    loaded = build("HiCroPL", **OFFICIAL, **{"MODEL.INIT_SEED": 99})
    loaded.load_model(str(tmp_path / "whole"), epoch=2)
    images = torch.randn(3, 3, 48, 48)
    assert torch.equal(logits_of(loaded, images), logits_of(whole, images))


def test_the_official_reading_is_not_recorded():
    trainer = build("HiCroPL", **OFFICIAL)
    trainer.cfg = trainer.cfg.clone()
    trainer.cfg.defrost()
    trainer.cfg.TRAIN.CUDA_GRAPH = "on"
    with pytest.raises(ValueError, match="HiCroPL does other operations at every step; set it to auto or off"):
        trainer.build_device_step()


def test_sentences_of_all_classes_are_asked_for_before_training(tmp_path):
    names = [f"digit {word}" for word in ("zero", "one", "two", "three", "four")]
    file = tmp_path / "sentences.json"
    file.write_text(json.dumps({name: [f"a {name}.", f"the {name}."] for name in names}), encoding="utf-8")
    options = {"TRAINER.HICROPL.SENTENCES": str(file)}
    trainer = build("HiCroPL", **options)
    assert trainer.notes["consistency_text"] == "sentences from sentences.json"
    assert trainer.model.prompt_learner.class_sentences(["digit_one"]) == [["a digit one.", "the digit one."]]
    with pytest.raises(ValueError, match=r"sentences.json has no sentence for 5 classes, the first is 'digit_?.five'"):
        build("HiCroPL", **options, **{"TEST.CLASS_SPLITS": ("base", "new")})
    file.write_text(json.dumps({name: ["so long a text " * 30] for name in names}), encoding="utf-8")
    with pytest.raises(
        ValueError, match=r"class 'digit.zero' has 122 tokens.* takes 77: shorten the template or sentence"
    ):
        build("HiCroPL", **options)
    with pytest.raises(FileNotFoundError, match=r"HICROPL.SENTENCES: no file nowhere.json.*use templates"):
        build("HiCroPL", **{"TRAINER.HICROPL.SENTENCES": "nowhere.json"})


def test_sizes_are_read_from_the_towers(small_clip):
    sizes, learner = TowerSizes.of(small_clip), learner_of(small_clip, 3)
    assert learner.vision_layers[3].shape == (3, sizes.vision_width)
    assert learner.text_layers[3].shape == (3, sizes.text_width)
