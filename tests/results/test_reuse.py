"""Image features computed once: the same numbers as without, and no image through the tower that need not be."""

import contextlib
import os
import shutil

import pytest
import torch

from prompting.weight_files import load_bundled_state_dict
from results.evaluate import evaluate_class_splits
from results.features import forget_all, loaders_on_features
from tests.trainers.small_runs import VARIANTS, build, logits_of, registered, stir

pytestmark = pytest.mark.usefixtures("few_templates")
SPLITS = ("base", "new", "all")
N_TEST = 40  # images of all ten digits
# One of each kind, and those that do something of their own with texts or images.
KINDS = ["ZeroshotCLIP2", "CoOp", "CoCoOp", "ProDA", "MaPLe", "CoPrompt", "MMRL", "BMIP", "BMIP/official"]


@pytest.fixture(autouse=True)
def empty_memory():
    forget_all()
    yield
    forget_all()


@pytest.fixture(autouse=True)
def repository_folder(monkeypatch, request):
    monkeypatch.chdir(request.config.rootpath)


def small(case, output="", **options):
    return build(case, output, **{"DATALOADER.TEST.BATCH_SIZE": 8, "TEST.FIT_TEMPERATURE": False, **options})


@contextlib.contextmanager
def counted(trainer):
    """How many images go through the tower inside."""
    counts = []
    encode = trainer.model.image_encoder.forward

    def count(images, *args):
        counts.append(len(images))
        return encode(images, *args)

    trainer.model.image_encoder.forward = count
    try:
        yield counts
    finally:
        del trainer.model.image_encoder.forward


def metrics_of(trainer):
    """All metrics but the time, and those of probabilities, which differ by the rounding of other batches."""
    metrics = evaluate_class_splits(trainer, trainer.cfg, SPLITS)
    inexact = ("seconds", "image_seconds", "image_gflop", "calibration", "ood")
    return {split: {k: v for k, v in values.items() if k not in inexact} for split, values in metrics.items()}


def model_tensors(trainer):
    return dict(trainer.model.prompt_learner.named_parameters())


@pytest.mark.parametrize("case", [*registered(), *VARIANTS])
@torch.no_grad()
def test_trainers_say_what_their_image_features_follow(case):
    trainer = small(case)
    for name, tensor in model_tensors(trainer).items():
        if name.endswith("alpha"):
            tensor.fill_(100.0)  # so that what a gate reads matters
    model, images = trainer.model.eval(), next(iter(trainer.test_loader))["img"][:4]
    before, alone = model.image_features(images), model.image_features(images[:1])
    if "class_specific" not in case:
        model.set_classes(["digit one", "digit two"])
    assert torch.equal(model.image_features(images), before)
    mates = not torch.allclose(before[:1], alone, atol=1e-5)
    if model_tensors(trainer):
        stir(trainer, std=1.0)
    trained = not torch.equal(model.image_features(images), before)
    own = trained or case.startswith("CoOp_DePT")  # whose features keep their norms, unlike other methods'
    assert trainer.image_features_follow == ("batch" if mates else "prompts" if own else "image")


@pytest.mark.parametrize("case", KINDS)
def test_class_splits_share_one_pass_over_the_images(case, capsys):
    plain, sharing = small(case, **{"FEATURES.REUSE": False}), small(case)
    for trainer in (plain, sharing):
        if model_tensors(trainer):
            stir(trainer)
    expected = metrics_of(plain)
    with counted(sharing) as images:
        assert metrics_of(sharing) == expected
    assert sum(images) == (2 * N_TEST if case == "BMIP/official" else N_TEST)
    assert ("known" in capsys.readouterr().out) == (case != "BMIP/official")


@pytest.mark.parametrize("case", ["CoOp", "MaPLe"])
def test_calibration_is_that_of_separate_passes_and_its_temperature_takes_the_validation_images_once(case):
    plain, sharing = (small(case, **{"FEATURES.REUSE": reuse, "TEST.FIT_TEMPERATURE": True}) for reuse in (False, True))
    for trainer in (plain, sharing):
        stir(trainer)
    expected = evaluate_class_splits(plain, plain.cfg, SPLITS)
    with counted(sharing) as images:
        found = evaluate_class_splits(sharing, sharing.cfg, SPLITS)
    assert sum(images) == N_TEST + len(sharing.dm.dataset.val)
    for split in SPLITS:
        ours, theirs = (metrics[split]["calibration"] for metrics in (found, expected))
        for one, other in ((ours, theirs), (ours["scaled"], theirs["scaled"])):
            names = ("ece", "adaptive_ece", "mce", "nll", "brier")
            assert [one[name] for name in names] == pytest.approx([other[name] for name in names], abs=1e-3)
        assert ours["temperature"] == pytest.approx(theirs["temperature"], rel=1e-3)


def test_features_of_prompts_that_were_trained_since_are_not_used():
    trainer = small("MaPLe")
    metrics_of(trainer)
    stir(trainer)
    with counted(trainer) as images:
        after = metrics_of(trainer)
    assert sum(images) == N_TEST
    forget_all()
    assert metrics_of(trainer) == after


def test_frozen_features_serve_seeds_and_methods():
    metrics_of(small("CoOp"))
    for case in ("CoOp", "KgCoOp", "CoCoOp", "ZeroshotCLIP"):
        trainer = small(case, SEED=2)
        with counted(trainer) as images:
            metrics_of(trainer)
        assert not images, case


@pytest.mark.parametrize(
    "options",
    [
        {"TRAINER.COOP.PREC": "bf16"},
        {"INPUT.PIXEL_MEAN": [0.5, 0.5, 0.5]},
        {"INPUT.INTERPOLATION": "bilinear"},
        {"INPUT.EXIF_ORIENTATION": True},
        {"INPUT.JPEG_DRAFT": 1.0},
    ],
    ids=["precision", "normalisation", "interpolation", "orientation", "draft"],
)
def test_other_features_are_not_taken_for_these(options):
    metrics_of(small("CoOp"))
    trainer = small("CoOp", **options)
    with counted(trainer) as images:
        metrics_of(trainer)
    assert sum(images) == N_TEST


def test_features_of_another_backbone_are_not_taken(tmp_path):
    metrics_of(small("CoOp"))
    weights = load_bundled_state_dict("tiny_clip")
    torch.save(weights | {"visual.proj": 2 * weights["visual.proj"]}, tmp_path / "other.pt")
    trainer = small("CoOp", **{"MODEL.BACKBONE.NAME": str(tmp_path / "other.pt")})
    with counted(trainer) as images:
        metrics_of(trainer)
    assert sum(images) == N_TEST


def test_a_folder_serves_other_processes(tmp_path, capsys):
    keep = {"FEATURES.FOLDER": str(tmp_path / "features")}
    first = metrics_of(small("CoOp", **keep))
    forget_all()
    trainer = small("CoOp", **keep)
    with counted(trainer) as images:
        assert metrics_of(trainer) == first
    assert not images
    for path in (tmp_path / "features").rglob("*.npz"):
        path.write_bytes(path.read_bytes()[:-100])
    forget_all()
    capsys.readouterr()
    assert metrics_of(small("CoOp", **keep)) == first
    assert capsys.readouterr().out.count("is damaged") == 2  # what base and new had written


def test_features_of_trained_prompts_do_not_go_to_disk(tmp_path):
    trainer = small("MaPLe", **{"FEATURES.FOLDER": str(tmp_path / "features")})
    metrics_of(trainer)
    assert not (tmp_path / "features").exists()


def test_a_changed_image_is_computed_anew(tmp_path, capsys):
    shutil.copytree("assets/digits", tmp_path / "digits")
    for path in (tmp_path / "digits").rglob("*.png"):
        os.utime(path, (10**9, 10**9))
    options = {"DATASET.ROOT": str(tmp_path), "DATALOADER.TEST.BATCH_SIZE": 100}
    trainer = small("ZeroshotCLIP", **options)
    before = evaluate_class_splits(trainer, trainer.cfg, ("base",))
    first, last = (trainer.dm.dataset.test[index].impath for index in (0, -1))
    shutil.copy(last, first)
    os.utime(first, (10**9 + 5, 10**9 + 5))
    capsys.readouterr()
    trainer = small("ZeroshotCLIP", **options)
    after = evaluate_class_splits(trainer, trainer.cfg, ("base",))
    assert f"{before['base']['num_images'] - 1} of {before['base']['num_images']} known, 1 computed" in (
        capsys.readouterr().out
    )
    forget_all()
    fresh = evaluate_class_splits(small("ZeroshotCLIP", **options), trainer.cfg, ("base",))
    assert after["base"]["confusion"] == fresh["base"]["confusion"]


@pytest.mark.parametrize("case", ["CoOp", "KgCoOp", "ProDA", "CoCoOp", "IVLP/language_only"])
def test_training_without_augmentation_uses_features(case, tmp_path, capsys):
    """Matrix products of other batches round differently: equal to 1e-5, and the predictions are the same."""
    trained = {}
    for reuse in (False, True):
        options = {"FEATURES.REUSE": reuse, "INPUT.TRANSFORMS": ("normalize",), "OPTIM.NAME": "sgd"}
        trainer = small(case, tmp_path / str(reuse), **options)
        with counted(trainer) as images, trainer.swapped(**loaders_on_features(trainer, trainer.cfg, training=True)):
            trainer.train()
        trained[reuse] = trainer
        assert sum(images) == 10 * (1 if reuse else 2)  # two shots of five classes; two epochs
    ours, theirs = (trained[r].model.prompt_learner.state_dict() for r in (True, False))
    for name, tensor in theirs.items():
        torch.testing.assert_close(ours[name], tensor, atol=1e-5, rtol=1e-4)
    images = next(iter(trainer.test_loader))["img"]
    logits = [logits_of(trained[reuse], images) for reuse in (True, False)]
    assert torch.equal(*(rows.argmax(dim=1) for rows in logits))
    assert "training on image features" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("case", "options"),
    [("CoOp", {}), ("MaPLe", {"INPUT.TRANSFORMS": ("normalize",)}), ("CoOp", {"FEATURES.REUSE": False})],
    ids=["augmented", "prompted image tower", "turned off"],
)
def test_training_uses_images_where_it_must(case, options):
    trainer = small(case, **options)
    assert "train_loader_x" not in loaders_on_features(trainer, trainer.cfg, training=True)


def test_validation_computes_frozen_features_once(tmp_path, capsys):
    trainer = small("CoOp", tmp_path, **{"TEST.FINAL_MODEL": "best_val", "TEST.NO_TEST": False})
    trainer.configure(final_evaluation=lambda: None)
    with trainer.swapped(**loaders_on_features(trainer, trainer.cfg, training=True)):
        trainer.train()
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("Image features")]
    assert len(lines) == 2  # epochs
    assert lines[1].endswith(" 0 computed")


def test_a_trainer_that_infers_in_its_own_way_reuses_nothing():
    trainer = small("CoOp")
    trainer.__class__ = type("Own", (type(trainer),), {"model_inference": lambda self, images: self.model(images)})
    assert trainer.image_features_follow == "batch"


@pytest.mark.parametrize(("key", "value"), [("FEATURES.FOLDER", "file/features"), ("FEATURES.MAX_GIB", -1.0)])
def test_settings_that_cannot_work_are_refused(key, value, tmp_path):
    (tmp_path / "file").write_text("in the way")
    value = str(tmp_path / value) if key == "FEATURES.FOLDER" else value
    trainer = small("CoOp", **{key: value})
    with pytest.raises(ValueError, match=key):
        loaders_on_features(trainer, trainer.cfg, training=True)
