"""Test-time prompt tuning: the released code's step, the views, what a run of it says of itself, and refusals."""

import base64
import json

import numpy as np
import pytest
import torch
from PIL import Image

import train
from prompting.model import Watch
from reporting.table import build_table
from results.schema import load_runs
from tests.reference import load_record, load_reference
from tests.reference.ours import load_upstream_values, trainer_of
from tests.reference.small_clip import small_clip, small_images
from tests.trainers.small_runs import build, configuration, data_root, repository, stir, trained_tensors
from trainers.tpt import TPT, TRAINERS, Views

RECORD = load_record("tpt")
SMALL = ("TPT.N_VIEWS", "4", "TPT.KEPT_SHARE", "0.5", "DATASET.NUM_SHOTS", "2", "OPTIM.MAX_EPOCH", "1")
OPEN_WORLD = ("DATASET.SUBSAMPLE_CLASSES", "base", "TEST.CLASS_SPLITS", "('base', 'new', 'all')")


@pytest.fixture(scope="module")
def clip():
    return small_clip()


@pytest.mark.parametrize(("case", "path"), [*((case, "fast") for case in RECORD["cases"]), ("context", "plain")])
def test_the_step_is_the_released_one(case, path, clip):
    expected = RECORD["cases"][case]
    reference = load_reference("cocoop_batch3" if case == "cocoop" else "coop_init")
    assert list(reference.class_names) == RECORD["class_names"]
    trainer = trainer_of(reference, clip, path=path, objective=False)
    if case != "words":
        load_upstream_values(trainer, reference)
    trainer.cfg.TPT.STEPS, trainer.cfg.TPT.LR = expected["steps"], expected["lr"]
    tuned = TPT(trainer, Watch(trainer.train_classnames))
    with torch.no_grad():
        features = trainer.model.image_features(small_images(64)).unsqueeze(0)
        context = tuned.adapt(features)
        logits = trainer.model.compare(features[:, 0], tuned.text_features(context)).logits
    values = np.frombuffer(base64.b64decode(expected["context_float32_base64"]), "<f4")
    torch.testing.assert_close(context.flatten(), torch.from_numpy(values.copy()), atol=1e-4, rtol=0)
    # AdamW divides the gradient by its size: rounding grows with every step, where the entropy is almost least
    atol = 1e-4 if expected["steps"] == 1 else 1e-3
    torch.testing.assert_close(logits, torch.tensor([expected["logits"]]), atol=atol, rtol=0)


@pytest.mark.parametrize("case", [*TRAINERS, "CoOp/class_specific", "CoOp/middle"])
def test_every_image_starts_anew_and_the_weights_stay(case):
    trainer = build(case, **{"TPT.N_VIEWS": 4, "TPT.KEPT_SHARE": 0.5, "TPT.STEPS": 2})
    stir(trainer, 0.02)
    before = {name: tensor.clone() for name, tensor in trained_tensors(trainer).items()}
    views = torch.randn(3, 4, 3, 48, 48, generator=torch.Generator().manual_seed(6))
    with torch.no_grad(), trainer.model.evaluating() as watch:
        together = TPT(trainer, watch)(views)
        plain = trainer.model(views[:, 0])
        alone = torch.cat([TPT(trainer, watch)(views[number : number + 1]) for number in (2, 1, 0)]).flip(0)
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=0)
    assert (together - plain).abs().amax() > 1e-2
    for name, tensor in trained_tensors(trainer).items():
        assert torch.equal(tensor, before[name])
        assert tensor.grad is None


def test_views_follow_from_seed_and_pixels(capsys):
    pixels = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    image, other = Image.fromarray(pixels), Image.fromarray(255 - pixels)
    views = {}
    for mixes in ("auto", "on", "off"):
        for seed in (1, 2):
            make = Views(configuration("CoOp", **{"SEED": seed, "TPT.N_VIEWS": 5, "TPT.AUGMIX": mixes}))
            views[mixes, seed] = make(image)
            make(other)
            assert torch.equal(make(image), views[mixes, seed])
            assert torch.equal(views[mixes, seed][0], make.original(image))
    assert views["off", 1].shape == (5, 3, 48, 48)
    assert torch.equal(views["auto", 1], views["on", 1])
    assert not any(torch.equal(views["on", 1][n], views["off", 1][n]) for n in range(1, 5))
    assert not torch.equal(views["off", 1][1], views["off", 2][1])
    assert "+ 4 random crops of each image, mixed by AugMix\n" in capsys.readouterr().out
    imagenet = configuration("CoOp", **{"DATASET.NAME": "ImageNetA"})
    assert not Views(imagenet).mixes


def command(output, *options):
    """Options of train.py; what stands before KEY VALUE pairs first."""
    return [
        *("--root", data_root(), "--seed", "1", "--output-dir", str(output), "--trainer", "CoOp"),
        *("--config-file", str(repository() / "configs/trainers/CoOp/tiny_c4_ep50_batch32_ctxv1.yaml")),
        *("--dataset-config-file", str(repository() / "configs/datasets/digits.yaml")),
        *(*options, *OPEN_WORLD, *SMALL),
    ]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Folders of a run, the same at test time, and test-time tuning from words alone."""
    folder = tmp_path_factory.mktemp("tpt")
    tuned = ("--eval-only", "--test-time", "tpt")
    assert train.main(command(folder / "plain")) == 0
    assert train.main(command(folder / "tuned", *tuned, "--model-dir", str(folder / "plain"))) == 0
    assert train.main(command(folder / "words", *tuned)) == 0
    return folder


def record_of(folder):
    return json.loads((folder / "results.json").read_text(encoding="utf-8"))


def test_a_row_of_its_own_names_it(runs):
    records = {name: record_of(runs / name) for name in ("plain", "tuned", "words")}
    names = {"plain": "CoOp", "tuned": "CoOp+TPT", "words": "TPT"}
    assert {name: record["trainer"] for name, record in records.items()} == names
    assert {record["protocol"] for record in records.values()} == {"open_world"}
    for name in ("tuned", "words"):
        assert set(records[name]["metrics"]) == {"base", "new", "all"}
        assert records[name]["config"]["TPT"]["N_VIEWS"] == 4
    assert labels(runs) == ["CoOp", "CoOp+TPT", "TPT"]


def labels(*folders):
    """Names of a table's rows."""
    (block, *_) = build_table(load_runs(folders), "open_world").blocks
    return [row.method.label for row in block.rows]


def test_other_settings_are_other_rows(runs, tmp_path):
    record = record_of(runs / "tuned")
    record["config"]["TPT"]["STEPS"] = 2
    record["metrics"]["new"]["accuracy"] += 1.0
    (tmp_path / "results.json").write_text(json.dumps(record), encoding="utf-8")
    assert labels(runs / "tuned", tmp_path) == ["CoOp+TPT (TPT.STEPS 1)", "CoOp+TPT (TPT.STEPS 2)"]


def test_it_repeats_itself_and_leaves_the_run_alone(runs, tmp_path, capsys):
    tuned = ("--eval-only", "--test-time", "tpt", "--model-dir", str(runs / "plain"))
    new = ("TEST.CLASS_SPLITS", "('new',)", "TEST.FIT_TEMPERATURE", "False", "DATALOADER.TEST.BATCH_SIZE", "8")
    assert train.main([*command(tmp_path / "again", *tuned), *new]) == 0  # two images in a batch
    first, again, plain = (
        np.load(folder / "predictions.npz") for folder in (runs / "tuned", tmp_path / "again", runs / "plain")
    )
    compared = [name for name in again.files if name.startswith("new")]
    assert compared
    for name in compared:
        np.testing.assert_allclose(first[name], again[name], atol=1e-3)
    assert any(not np.allclose(first[name], plain[name], atol=1e-2) for name in compared)
    assert train.main(command(runs / "plain", *tuned)) == 2
    assert "TEST.ADAPTATION was '', now 'tpt'" in capsys.readouterr().err


REFUSED = {
    "another method": (("--trainer", "MaPLe", "--eval-only", "--model-dir", "x"), "what MaPLe predicts with is not"),
    "a subclass": (("--trainer", "CoOp_DePT", "--eval-only", "--model-dir", "x"), "use one of CoOp, CoCoOp"),
    "training": ((), "add --eval-only"),
    "no words": (("--eval-only", "TRAINER.COOP.CTX_INIT", ""), "TRAINER.COOP.CTX_INIT 'a photo of a'"),
    "no meta-net": (
        ("--trainer", "CoCoOp", "--eval-only", "TRAINER.COCOOP.CTX_INIT", "a photo of a"),
        "needs its trained meta-net",
    ),
    "features": (("--eval-only", "TEST.SAVE_FEATURES", "True"), "set it to False"),
    "one view": (("--eval-only", "TPT.N_VIEWS", "1"), "TPT.N_VIEWS"),
    "mixing": (("--eval-only", "TPT.AUGMIX", "maybe"), "TPT.AUGMIX"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_tuned_is_refused(case, tmp_path, capsys):
    options, said = REFUSED[case]
    assert train.main(command(tmp_path / "out", "--test-time", "tpt", *options)[: -len(SMALL)]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert said in lines[0]
    assert not (tmp_path / "out").exists()
