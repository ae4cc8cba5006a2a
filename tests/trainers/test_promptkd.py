"""PromptKD: its teacher, which images and classes are distilled, the running statistics, and what tables say of it."""

import json
import shutil

import pytest
import torch
from torch.nn import functional as F

import train
from common.unpickling import CheckpointError, read_checkpoint
from reporting.published import MARKS
from reporting.table import build_table
from results.schema import load_runs
from tests.reference import load_reference, reference_names
from tests.reference.ours import load_upstream_values, trainer_of
from tests.reference.small_clip import small_clip, small_images
from tests.trainers.small_runs import (
    build,
    data_root,
    first_batch,
    logits_of,
    stir,
    teacher,
    train_on,
    trained_tensors,
)
from trainers import load_run
from trainers.promptkd import BatchNorm

ALL = {"TRAINER.PROMPTKD.CLASSES": "all"}


@pytest.fixture(scope="module")
def images():
    return torch.randn(4, 3, 48, 48, generator=torch.Generator().manual_seed(4))


@pytest.mark.parametrize("name", reference_names("promptkd_"))
def test_the_released_codes_running_statistics_and_teacher(name):
    reference = load_reference(name)
    trainer = trainer_of(reference, small_clip())
    load_upstream_values(trainer, reference)
    images = small_images(len(reference.labels))
    with torch.no_grad():
        taught = trainer.teacher.outputs(images).logits
    torch.testing.assert_close(taught, torch.tensor(reference.record["teacher_logits"]), atol=1e-4, rtol=0)
    trainer.objective(trainer.model.train(), images, reference.labels)
    norm = trainer.model.prompt_learner.projection[1]
    norm.remember()
    for kept, values in reference.record["running"].items():
        ours = getattr(norm, kept.rpartition(".")[2])[: len(values)]
        torch.testing.assert_close(ours, torch.tensor(values), atol=1e-6, rtol=1e-4)


def test_statistics_move_once_a_step_as_pytorchs_do():
    ours, theirs = BatchNorm(6), torch.nn.BatchNorm1d(6)
    for seed in range(3):
        features = torch.randn(5, 6, generator=torch.Generator().manual_seed(seed)) + seed
        for _ in range(2):  # a step that is computed again
            normalised = ours(features)
        ours.remember()
        torch.testing.assert_close(normalised, theirs(features))
    for name in ("running_mean", "running_var"):
        torch.testing.assert_close(getattr(ours, name), getattr(theirs, name))
    torch.testing.assert_close(ours.eval()(features), theirs.eval()(features))


def test_the_loss_is_the_divergence_from_the_teacher(images):
    trainer = build("PromptKD/temperature")
    classifier = load_run(teacher())
    model, objective = trainer.model.eval(), trainer.objective
    classifier.model.set_classes(model.classnames)
    with torch.no_grad():
        taught, ours = classifier.model(images) / 2, model(images) / 2
        loss = objective(model, images, torch.zeros(4, dtype=torch.long))
    expected = 4 * F.kl_div(ours.log_softmax(1), taught.softmax(1), reduction="sum") / ours.numel()
    assert loss.total.item() == pytest.approx(10 * expected.item(), rel=1e-4)
    assert loss.terms["loss_kd"].item() == pytest.approx(expected.item(), rel=1e-4)


def test_the_teacher_is_neither_trained_nor_saved(tmp_path):
    trainer = build("PromptKD", tmp_path, **{"OPTIM.MAX_EPOCH": 1})
    before = {name: value.clone() for name, value in trainer.teacher.state_dict().items()}
    trainer.train()
    assert all(torch.equal(value, before[name]) for name, value in trainer.teacher.state_dict().items())
    assert all(p.grad is None for p in trainer.teacher.parameters())
    kept = set(read_checkpoint(tmp_path / "prompt_learner/model.pth.tar-1")["state_dict"])
    assert kept == {*trained_tensors(trainer), "projection.1.running_mean", "projection.1.running_var"}


def test_new_classes_get_the_teachers_text(images):
    trainer, classifier = build("PromptKD"), load_run(teacher())
    trainer.set_class_split("new")
    classifier.model.set_classes(trainer.model.classnames)
    with torch.no_grad():
        assert torch.equal(trainer.model.eval().outputs(images).text_features, classifier.model.text_features())


def test_which_images_and_classes():
    base, everything = build("PromptKD"), build("PromptKD", **ALL)
    assert base.notes["unlabelled"] == {"images": 10, "classes": 5}
    assert everything.notes["unlabelled"] == {"images": 20, "classes": 10}
    assert (base.notes["transductive"], everything.notes["transductive"]) == (False, True)
    assert len(everything.model.classnames) == len(everything.train_classnames) == 5
    assert everything.objective(
        *(everything.model, *everything.parse_batch_train(first_batch(everything)))
    ).output.logits.shape == (5, 10)
    whole = build("PromptKD", **ALL, **{"TRAINER.PROMPTKD.SHOTS": 0})
    assert whole.notes["unlabelled"] == {"images": 600, "classes": 10}


def test_labels_are_not_read():
    trainer = build("PromptKD")
    inputs, labels = trainer.parse_batch_train(first_batch(trainer))
    losses = [trainer.objective(trainer.model, inputs, some).total for some in (labels, labels.flip(0) * 0)]
    assert torch.equal(*losses)


def test_another_teacher_is_refused(tmp_path):
    build("PromptKD", tmp_path / "student", **{"OPTIM.MAX_EPOCH": 1}).train()
    shutil.copytree(teacher(), tmp_path / "other")
    other = build("IVLP")
    stir(other)
    path = next((tmp_path / "other/prompt_learner").glob("model.pth.tar-*"))
    content = read_checkpoint(path)
    content["state_dict"] = other.model.prompt_learner.state_dict()
    torch.save(content, path)
    trainer = build("PromptKD", **{"TRAINER.PROMPTKD.TEACHER": str(tmp_path / "other")})
    with pytest.raises(CheckpointError, match=r"learned from another teacher than that in .*other: set TRAINER.PROM"):
        trainer.load_model(str(tmp_path / "student"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"TRAINER.PROMPTKD.TEACHER": ""}, r"TEACHER is empty: give the --output-dir of a finished run"),
        (
            {"TRAINER.PROMPTKD.TEACHER": "gone/seed{seed}"},
            r"PROMPTKD.TEACHER gone/seed1: .* has no config.yaml",
        ),
        ({"DATALOADER.TRAIN_X.BATCH_SIZE": 1}, r"BATCH_SIZE is 1: PromptKD's projection normalises over the batch"),
        ({"TRAINER.PROMPTKD.CLASSES": "new"}, r"PROMPTKD.CLASSES 'new': choose one of all, base"),
        ({"TRAINER.PROMPTKD.PROMPT_DEPTH_VISION": 5}, r"PROMPT_DEPTH_VISION is 5.*1 to 4 layers"),
    ],
)
def test_refusals(options, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        build("PromptKD", **options)


def test_a_teacher_that_takes_other_images_is_refused():
    trainer = build("PromptKD")
    trainer.teacher.image_encoder.visual.input_resolution = 64
    with pytest.raises(
        ValueError, match=r"TEACHER .*its backbone takes 64 pixels, bundled:tiny_clip takes 48.*one image"
    ):
        trainer.load_checked_backbone()


@pytest.mark.parametrize("case", ["CoCoOp", "MMRL", "CoOp_DePT"])
def test_a_teacher_without_one_text_for_each_class_is_refused(case, tmp_path):
    trainer = build(case, tmp_path, **{"OPTIM.MAX_EPOCH": 1})
    trainer.train()
    (tmp_path / "config.yaml").write_text(trainer.cfg.dump(), encoding="utf-8")
    with pytest.raises(ValueError, match=r"TEACHER .*one image feature with one text feature of each class.*PromptSRC"):
        build("PromptKD", **{"TRAINER.PROMPTKD.TEACHER": str(tmp_path)})


def test_teachers_of_other_methods_teach(tmp_path, images):
    """Zero-shot CLIP, whose run has no checkpoint, and a student, which has a teacher itself."""
    for case in ("ZeroshotCLIP", "PromptKD"):
        folder = tmp_path / case
        trainer = build(case, folder, **{"OPTIM.MAX_EPOCH": 1})
        trainer.train()
        folder.mkdir(exist_ok=True)
        (folder / "config.yaml").write_text(trainer.cfg.dump(), encoding="utf-8")
        student = build("PromptKD", **{"TRAINER.PROMPTKD.TEACHER": str(folder)})
        assert torch.isfinite(torch.tensor(train_on(student, first_batch(student))["loss"]))
        assert logits_of(student, images).shape == (4, 5)


def test_a_run_from_the_command_line_is_marked_in_tables(tmp_path, monkeypatch, request):
    monkeypatch.chdir(request.config.rootpath)
    shared = ["--root", data_root(), "--seed", "1", "--dataset-config-file", "configs/datasets/digits.yaml"]
    shared += ["--device", "cpu"]
    options = ["DATASET.NUM_SHOTS", "2", "DATASET.SUBSAMPLE_CLASSES", "base", "OPTIM.MAX_EPOCH", "1"]
    options += ["TEST.CLASS_SPLITS", "('base','new')", "TRAINER.PROMPTKD.TEACHER", teacher()]
    config = ["--trainer", "PromptKD", "--config-file", "configs/trainers/PromptKD/tiny_c2_ep20_batch8_4+4ctx.yaml"]
    for classes in ("all", "base"):
        output = ["--output-dir", str(tmp_path / classes)]
        ends = ["TRAINER.PROMPTKD.CLASSES", classes, "TRAINER.PROMPTKD.SHOTS", "2"]
        assert train.main([*shared, *config, *output, *options, *ends]) == 0
    again = ["--eval-only", "--model-dir", str(tmp_path / "all"), "--output-dir", str(tmp_path / "again")]
    assert train.main([*shared, *config, *again, *options, "TRAINER.PROMPTKD.CLASSES", "base"]) == 0
    record = json.loads((tmp_path / "again/results.json").read_text(encoding="utf-8"))
    assert record["notes"]["transductive"] is True  # its weights are, whatever this run's settings say
    table = build_table(load_runs([tmp_path / "all", tmp_path / "base"]))
    labels = {row.method.label for block in table.blocks for row in block.rows}
    assert labels == {
        "PromptKD (TRAINER.PROMPTKD.CLASSES all, transductive)",
        "PromptKD (TRAINER.PROMPTKD.CLASSES base)",
    }
    assert f"transductive: {MARKS['transductive']}" in table.legend
    (prediction,) = load_run(tmp_path / "all").predict(["assets/digits/images/digit_seven/0007.png"], top=2)
    assert len(prediction.ranking) == 2
