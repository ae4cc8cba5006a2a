"""MMRL and MMRL++: which logits predict which class list, what they are made of, the loss, what both have in common."""

import json

import pytest
import torch
from torch.nn import functional as F

import train
from prompting import resolve_precision
from prompting.checkpoint import CheckpointError
from results.evaluate import evaluate_class_splits
from tests.clips import CLASSNAMES
from tests.test_train import arguments
from tests.trainers.small_runs import build, stir
from trainers import load_run
from trainers.mmrl import MMRLLearner, MMRLLoss, MMRLModel
from trainers.mmrlpp import MMRLppLearner

FP32 = resolve_precision("fp32", "cpu")


def model_of(clip_model, logits="auto", fusion="logits", alpha=0.7, path="fast"):
    learner = MMRLLearner(clip_model, "a photo of a {}.", 3, 16, (1, 2), torch.Generator().manual_seed(0))
    return MMRLModel(clip_model, learner, CLASSNAMES, FP32, path, alpha, logits, fusion)


def test_what_the_tokens_start_as(small_clip):
    """As in the released code: equal projections in all layers, and a random read-out, not CLIP's."""
    learner = model_of(small_clip).prompt_learner
    vision = learner().vision
    assert torch.equal(vision.deep[1], vision.deep[2])
    assert vision.readout.std().item() == pytest.approx(small_clip.visual.proj.shape[0] ** -0.5, rel=0.05)
    assert learner.space.std().item() == pytest.approx(0.02, rel=0.3)


def test_mmrlpp_starts_as_mmrl_with_clips_own_read_out(small_clip, some_images):
    """Residuals start at zero; a share of 1 leaves nothing of the arriving tokens."""
    model, learner = model_of(small_clip), MMRLppLearner(small_clip, "a photo of a {}.", 3, 16, (1, 2), 1.0, 2, 4)
    other = MMRLModel(small_clip, learner, CLASSNAMES, FP32, "fast", 0.7, "auto", "logits")
    with torch.no_grad():
        model.prompt_learner.space.copy_(learner.space)
        model.prompt_learner.rep_projection.copy_(small_clip.visual.proj)
        for tower in ("to_vision", "to_text"):
            for layer, bias in zip(getattr(model.prompt_learner, tower), getattr(learner, tower).bias, strict=True):
                layer.weight.copy_(getattr(learner, tower).weight)
                layer.bias.copy_(bias)
        torch.testing.assert_close(other(some_images), model(some_images), atol=1e-4, rtol=0)
        learner.beta = 0.5
        assert (other(some_images) - model(some_images)).abs().max() > 0.01
    assert "projection" not in learner.state_dict()


@pytest.mark.parametrize("path", ["fast", "plain"])
def test_both_logits_and_their_mixtures(small_clip, some_images, path):
    model = model_of(small_clip, alpha=0.25, path=path)
    output = model.outputs(some_images)
    of_class, of_rep = output.class_logits, output.rep_logits
    features = F.normalize(model.image_encoder(some_images, model.prompt_learner().vision), dim=-1)
    torch.testing.assert_close(features[:, 0], output.image_features)
    for number, logits in enumerate((of_class, of_rep)):
        torch.testing.assert_close(logits, 100 * features[:, number] @ output.text_features.T, atol=1e-4, rtol=0)
    torch.testing.assert_close(output.logits, 0.25 * of_class + 0.75 * of_rep)
    model.fusion = "probabilities"
    expected = 0.25 * of_class.softmax(1) + 0.75 * of_rep.softmax(1)
    torch.testing.assert_close(model(some_images).softmax(1), expected)
    for alpha, expected in ((0.0, of_rep), (1.0, of_class)):
        model.alpha = alpha
        torch.testing.assert_close(model(some_images).softmax(1), expected.softmax(1))


def test_the_loss(small_clip, some_images):
    model, labels = model_of(small_clip, logits="plain"), torch.tensor([1, 0, 4])
    teacher = F.normalize(torch.randn(len(CLASSNAMES), 64, generator=torch.Generator().manual_seed(1)), dim=-1)
    loss, output = MMRLLoss(teacher, 0.7, 3.0)(model, some_images, labels), model.outputs(some_images)
    frozen = F.normalize(small_clip.encode_image(some_images), dim=-1)
    apart = [1 - (a * b).sum(-1).mean() for a, b in ((output.image_features, frozen), (output.text_features, teacher))]
    ce = [F.cross_entropy(logits, labels) for logits in (output.class_logits, output.rep_logits)]
    torch.testing.assert_close(loss.total, 0.7 * ce[0] + 0.3 * ce[1] + 3 * sum(apart), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("setting", "kinds"),
    [
        ("auto", {"base": "fused", "new": "plain", "all": "plain"}),
        ("plain", {"base": "plain", "new": "plain", "all": "plain"}),
        ("fused", {"base": "fused", "new": "fused", "all": "fused"}),
    ],
)
def test_one_kind_of_logits_for_all_images_of_a_class_list(setting, kinds, monkeypatch):
    """Base and new images in one softmax, too: what the evaluator is given is one kind for every image."""
    trainer, seen = build("MMRL", **{"TRAINER.MMRL.LOGITS": setting, "TEST.FIT_TEMPERATURE": False}), {}
    stir(trainer)
    compare = MMRLModel.compare

    def watched(model, image, text):
        output = compare(model, image, text)
        seen.setdefault(trainer._class_split, []).append(output)
        return output

    monkeypatch.setattr(MMRLModel, "compare", watched)
    metrics = evaluate_class_splits(trainer, trainer.cfg, ("base", "new", "all"))
    assert trainer.notes["logits"] == kinds
    assert {split: kinds[split] for split in seen} == kinds
    for split, outputs in seen.items():
        assert sum(len(output.logits) for output in outputs) == metrics[split]["num_images"]
        for output in outputs:
            fused = 0.7 * output.class_logits + 0.3 * output.rep_logits
            assert torch.equal(output.logits, fused if kinds[split] == "fused" else output.class_logits)
            assert not torch.equal(fused, output.class_logits)


def test_only_tested_class_splits_are_named():
    trainer = build("MMRL")
    trainer.test("val")
    evaluate_class_splits(trainer, trainer.cfg, ("new",))
    assert trainer._class_split == "base"  # switched back to what it trains on
    assert trainer.notes["logits"] == {"new": "plain"}


def test_the_checkpoint_says_what_was_trained_on(tmp_path, some_images):
    build("MMRL", tmp_path, **{"OPTIM.MAX_EPOCH": 1}).train()
    loaded = build("MMRL", **{"DATASET.SUBSAMPLE_CLASSES": "all"})
    assert loaded.model.fuses  # about to be trained on all classes
    loaded.load_model(str(tmp_path))
    assert not loaded.model.fuses
    loaded.set_class_split("base")
    assert loaded.model.fuses
    loaded.model.set_classes(["digit_three", "digit one"])
    assert loaded.model.fuses
    loaded.model.set_classes(["digit three", "digit nine"])
    assert not loaded.model.fuses


def test_classes_of_another_data_set_are_others(tmp_path):
    """As published: ImageNet's variants, which have its class names, are predicted without the fusion."""
    build("MMRL", tmp_path, **{"OPTIM.MAX_EPOCH": 1}).train()
    path = tmp_path / "prompt_learner" / "model.pth.tar-1"
    content = torch.load(path, weights_only=True)
    assert content["dataset"] == "Digits"
    torch.save(content | {"dataset": "ImageNet"}, path)
    loaded = build("MMRL")
    loaded.load_model(str(tmp_path))
    assert not loaded.model.fuses


@pytest.mark.parametrize("unknown", ["dataset", "classnames"])
def test_a_checkpoint_that_does_not_say_it_needs_a_choice(tmp_path, unknown):
    build("MMRL", tmp_path, **{"OPTIM.MAX_EPOCH": 1}).train()
    path = tmp_path / "prompt_learner" / "model.pth.tar-1"
    content = torch.load(path, weights_only=True)
    del content[unknown]
    torch.save(content, path)
    loaded = build("MMRL", **{"MODEL.INIT_SEED": 5})
    before = {name: value.clone() for name, value in loaded.model.prompt_learner.state_dict().items()}
    with pytest.raises(CheckpointError, match=r"does not say which classes.*LOGITS auto.*set it to fused.*plain"):
        loaded.load_model(str(tmp_path))
    assert all(torch.equal(value, before[name]) for name, value in loaded.model.prompt_learner.state_dict().items())
    for choice in ("plain", "fused"):
        loaded = build("MMRL", **{"TRAINER.MMRL.LOGITS": choice})
        loaded.load_model(str(tmp_path))
        assert loaded.model.fuses == (choice == "fused")


def test_predicting_with_a_run(tmp_path, monkeypatch, request):
    """The run's own prompt, also one that its data set's file does not name; fused on its classes, plain on others."""
    monkeypatch.chdir(request.config.rootpath)
    options = ("DATASET.SUBSAMPLE_CLASSES", "base", "DATASET.TEMPLATE", "the number {}, by hand.")
    options += ("TEST.CLASS_SPLITS", "('base','new')", "TRAINER.MMRL.REP_LAYERS", "(2, 4)")
    assert train.main(arguments("MMRL", tmp_path, *options)) == 0
    notes = json.loads((tmp_path / "results.json").read_text())["notes"]
    assert notes["logits"] == {"base": "fused", "new": "plain"}
    classifier = load_run(tmp_path)
    assert classifier.model.prompt_learner.template == "the number {}, by hand."
    assert classifier.model.fuses
    images = ["assets/digits/images/digit_seven/0007.png"]
    assert list(classifier.predict(images, classes=["digit seven", "digit one"]))
    assert not classifier.model.fuses


def test_two_features_of_an_image_stand_in_for_it(small_clip, some_images):
    model = model_of(small_clip)
    features = model.image_features(some_images)
    assert features.shape == (3, 2, 64)
    assert torch.equal(model(features), model(some_images))
