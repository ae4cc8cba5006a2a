"""Heads on frozen features, and DePT's: views computed once, classes looked up by name, files of other classes."""

import pytest
import torch
from torch.nn import functional as F

from common.unpickling import CheckpointError
from results.evaluate import evaluate_class_splits
from results.features import loaders_on_features
from tests.trainers.small_runs import build, logits_of, stir, trained_tensors
from trainers.heads import places_of


@pytest.fixture(scope="module")
def images():
    return torch.randn(4, 3, 48, 48, generator=torch.Generator().manual_seed(4))


def moved(case, *output, **options):
    trainer = build(case, *output, **options)
    stir(trainer)
    return trainer


def count_passes(trainer):
    """Counts the images that go through the image tower from now on."""
    seen, encoder = [], trainer.model.image_encoder
    encoder.register_forward_hook(lambda module, inputs, output: seen.append(len(inputs[0])))
    return seen


def trained_after(tmp_path, case, transforms=("random_resized_crop", "normalize"), **options):
    """The trained tensors after three epochs, and how many images went through the tower."""
    trainer = build(case, tmp_path, **{"OPTIM.MAX_EPOCH": 3, "INPUT.TRANSFORMS": transforms, **options})
    seen = count_passes(trainer)
    with trainer.swapped(**loaders_on_features(trainer, trainer.cfg, training=True)):
        trainer.train()
    return {name: tensor.detach() for name, tensor in trained_tensors(trainer).items()}, sum(seen)


def assert_close(one, other, different=False):
    for name, tensor in one.items():
        assert torch.allclose(tensor, other[name], atol=1e-5) != different, name


# Views


@pytest.mark.parametrize("case", ["TaskRes", "CLIP_Adapter"])
def test_as_many_views_as_epochs_train_as_published(case, tmp_path):
    node = build(case).node
    published, shown = trained_after(tmp_path / "0", case, **{f"TRAINER.{node}.VIEWS": 0})
    kept, computed = trained_after(tmp_path / "3", case, **{f"TRAINER.{node}.VIEWS": 3})
    fewer, once = trained_after(tmp_path / "1", case, **{f"TRAINER.{node}.VIEWS": 1})
    assert (shown, computed, once) == (30, 30, 10)  # 2 shots of 5 classes
    assert_close(kept, published)
    assert_close(fewer, published, different=True)


def test_images_that_are_not_augmented_have_one_view(tmp_path):
    options = {"transforms": ("normalize",), "FEATURES.FOLDER": str(tmp_path / "features")}
    kept, computed = trained_after(tmp_path / "20", "TaskRes", **options, **{"TRAINER.TASKRES.VIEWS": 20})
    published, shown = trained_after(tmp_path / "0", "TaskRes", **options, **{"TRAINER.TASKRES.VIEWS": 0})
    assert (computed, shown) == (10, 0)
    assert_close(kept, published)


# Classes


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        (["cat", "dog", "crane", "crane"], [0, 1, 2, 3]),
        (["crane", "bird", "cat"], [2, -1, 0]),
        (["cat", "cat"], [0, -1]),  # one was trained
        (["Cat"], [-1]),
    ],
)
def test_places(wanted, expected):
    assert places_of(wanted, ["cat", "dog", "crane", "crane"]) == expected


def test_taskres_adds_residuals_to_the_trained_classes_only(images):
    trainer = moved("TaskRes")
    residual = trainer.model.head.residual
    trainer.set_class_split("all")
    logits, model = logits_of(trainer, images), trainer.model
    text = model.text_features()
    assert (text.norm(dim=-1) - 1).abs().min() > 0.05  # the towers' own norms, as published
    expected = torch.cat([text[:5] + 0.5 * residual, text[5:]])
    scale = model.logit_scale.exp()
    torch.testing.assert_close(
        logits, scale * model.image_features(images) @ F.normalize(expected, dim=-1).T, atol=1e-4, rtol=0
    )
    assert trainer.logits_kind == "head of 5 of 10 classes"


def test_results_say_how_many_classes_were_trained():
    trainer = moved("TaskRes")
    evaluate_class_splits(trainer, trainer.cfg, ("base", "new"))
    assert trainer.notes["logits"] == {"base": "head of 5 of 5 classes", "new": "head of 0 of 5 classes"}


@pytest.mark.parametrize(("case", "count"), [("TaskRes", 8), ("TipAdapter", 7), ("LPPlusPlus", 7)])
def test_the_ensemble_is_taken_on_imagenet_and_its_variants(case, count):
    trainer = build(case)
    trainer.cfg = trainer.cfg.clone()
    trainer.cfg.defrost()
    trainer.cfg.DATASET.NAME = "ImageNetSketch"
    assert len(trainer.templates()) == count
    trainer.cfg.DATASET.TEMPLATE = "a sketch of a {}."
    assert trainer.templates() == ["a sketch of a {}."]


def test_the_adapter_does_not_depend_on_the_length_of_features(images):
    model = moved("CLIP_Adapter").model
    with torch.no_grad():
        features, text = model.image_features(images), model.text_features()
        torch.testing.assert_close(model.compare(7 * features, text).logits, model.compare(features, text).logits)


def test_an_adapter_without_a_share_is_zero_shot_clip(images):
    zero_shot = build("ZeroshotCLIP")
    for split in ("base", "new"):
        trainer = moved("CLIP_Adapter", **{"TRAINER.CLIP_ADAPTER.RATIO": 0.0})
        for each in (trainer, zero_shot):
            each.set_class_split(split)
        torch.testing.assert_close(logits_of(trainer, images), logits_of(zero_shot, images), atol=1e-4, rtol=0)


# Checkpoints


@pytest.mark.parametrize(
    ("case", "kind"), [("TaskRes", "head of {0} of {0} classes"), ("CoOp_DePT", "both heads")], ids=["TaskRes", "DePT"]
)
def test_a_checkpoint_of_more_classes_brings_its_head(case, kind, images, tmp_path):
    trained = build(case, tmp_path, **{"DATASET.SUBSAMPLE_CLASSES": "all", "OPTIM.MAX_EPOCH": 1})
    trained.train()
    for split, count in (("base", 5), ("new", 5), ("all", 10)):
        trained.set_class_split(split)
        loaded = build(case, **{"DATASET.SUBSAMPLE_CLASSES": split})
        loaded.load_model(str(tmp_path))
        loaded.set_class_split(split)
        assert loaded.model.prompt_learner.head.classnames == tuple(trained.train_classnames)
        assert loaded.logits_kind == kind.format(count)
        assert torch.equal(logits_of(loaded, images), logits_of(trained, images))


@pytest.mark.parametrize(
    ("case", "folder", "names"),
    [
        ("TaskRes", "prompt_learner", ["text_feature_residuals"]),
        ("CoOp_DePT", "PromptLearner", ["prompt_learner.ctx", "linear_probe_proj.weight"]),
    ],
    ids=["TaskRes", "DePT"],
)
def test_a_file_that_names_no_classes_is_not_read_for_new_ones(case, folder, names, tmp_path):
    (tmp_path / folder).mkdir()
    state_dict = {name: torch.zeros(5, 8) for name in names}
    torch.save({"state_dict": state_dict, "epoch": 1}, tmp_path / folder / "model.pth.tar-1")
    trainer = build(case, **{"DATASET.SUBSAMPLE_CLASSES": "new"})
    with pytest.raises(CheckpointError, match=r"does not name the classes.*SUBSAMPLE_CLASSES base and TEST.CLASS_SPL"):
        trainer.load_model(str(tmp_path))


@pytest.mark.parametrize("case", ["TaskRes", "CoOp_DePT"])
def test_initial_weights_of_other_classes_are_refused(case, tmp_path):
    trained = moved(case, tmp_path / "first")
    trained.save_model(0, str(tmp_path))
    (path,) = tmp_path.glob("prompt_learner/model.pth.tar-*")
    build(case, **{"MODEL.INIT_WEIGHTS": str(path)})
    with pytest.raises(CheckpointError, match="its head is of other classes"):
        build(case, **{"MODEL.INIT_WEIGHTS": str(path), "DATASET.SUBSAMPLE_CLASSES": "new"})
