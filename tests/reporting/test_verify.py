"""python -m reporting verify: zero-shot accuracies beside published numbers of the test's own, and where to look."""

import json
from pathlib import Path

import pytest

import sweep
from reporting import published, verify
from reporting.__main__ import main
from results.schema import REPOSITORY, Run, canonical_dataset, load_runs
from tests.datasets.real_layouts import build_layout

ZERO_SHOT = ["--protocol", "open_world", "--trainers", "ZeroshotCLIP", "--datasets", "present"]
SPLIT_OF_EUROSAT = "541503a77d0b26b735d85ec7a3e672804fe0aa466c2e5f07da772cc6c0af8ad2"


def publish(monkeypatch, path: Path, **values: dict[str, list[float]]) -> None:
    """Let these be the published numbers of zero-shot CLIP, by the metrics' names joined with "_"."""
    entries = [
        {"protocol": "base_to_new", "method": "CLIP", "trainer": "ZeroshotCLIP", "source": "test", "confidence": "high"}
        | {"metrics": metrics.split("_"), "values": rows}
        for metrics, rows in values.items()
    ]
    sources = {"test": {"title": "a table", "read": "text"}}
    path.write_text(json.dumps({"sources": sources, "entries": entries, "seed_studies": []}))
    monkeypatch.setattr(published, "PUBLISHED_FILE", path)
    published.load_published.cache_clear()


@pytest.fixture(autouse=True)
def the_published_numbers_again():
    yield
    published.load_published.cache_clear()


@pytest.fixture
def zero_shot(runs):
    """Add a run of zero-shot CLIP ViT-B/16 with these accuracies on base, new and all classes."""

    def add(dataset="EuroSAT", accuracies=(56.48, 64.05, 47.5), config=None, **changes):
        metrics = {name: {"accuracy": value} for name, value in zip(("base", "new", "all"), accuracies, strict=True)}
        metrics["all"] |= {"num_images": 8100, "num_classes": 10} if dataset == "EuroSAT" else {}
        facts = {"backbone": "ViT-B/16", "data": {"split_sha256": SPLIT_OF_EUROSAT}, "config": config or {}}
        return runs.add(
            metrics, zero_shot="model" not in changes, trainer="ZeroshotCLIP", dataset=dataset, **facts | changes
        )

    return add


def test_published_accuracies_agree_with_themselves(zero_shot, runs, capsys):
    """The real file: base and new to two decimals, all of another source to one, ImageNet's from the more exact one."""
    zero_shot(accuracies=(56.48 + 0.29, 64.05 - 0.29, 47.99))
    zero_shot("ImageNet", (72.43, 68.14, 66.73))
    zero_shot("ImageNetV2", (70.0, 70.0, 60.83))
    assert main(["verify", str(runs.root), "--format", "json"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [(row["dataset"], row["classes"], row["published"], row["tolerance"]) for row in rows] == [
        *[("ImageNet", "base", 72.43, 0.3), ("ImageNet", "new", 68.14, 0.3), ("ImageNet", "all", 66.73, 0.3)],
        *[("EuroSAT", "base", 56.48, 0.3), ("EuroSAT", "new", 64.05, 0.3), ("EuroSAT", "all", 47.5, 0.5)],
        ("ImageNetV2", "all", 60.83, 0.3),
    ]
    assert main(["verify", str(runs.root)]) == 0
    assert "7 of 7 accuracies of zero-shot CLIP ViT-B/16 agree" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "causes"),
    [
        (
            {"data": {"split_sha256": "ab"}},
            ["its split file has the SHA-256 ab, the known published copy 54"],
        ),
        (
            {"config": {"DATASET": {"TEMPLATE": "a {}."}}},
            ["DATASET.TEMPLATE is 'a {}.', and '' in the published set-up"],
        ),
        ({"config": {"INPUT": {"SIZE": [256, 256]}}}, ["INPUT.SIZE is [256, 256], and [224, 224] in the published"]),
        (
            {"backbone": "/models/B-16.pt"},
            ["weights: /models/B-16.pt was read", "resized, re-encoded or damaged copies"],
        ),
        ({}, ["EuroSAT: split, counts and settings are as published; so the images"]),
    ],
)
def test_what_differs_is_looked_for_where_the_run_is_unlike_the_published_set_up(
    zero_shot, runs, capsys, changes, causes
):
    zero_shot(accuracies=(50.0, 64.05, 47.5), **changes)
    zero_shot("OxfordPets", (91.17, 97.26, 89.1))
    assert main(["verify", str(runs.root)]) == 1
    output = capsys.readouterr().out
    assert "5 of 6 accuracies" in output
    assert all(cause in output for cause in causes)
    assert "OxfordPets:" not in output
    assert "what the data sets share" not in output


def test_another_number_of_test_images_is_named(zero_shot, runs):
    path = zero_shot(accuracies=(50.0, 64.05, 47.5))
    record = json.loads(path.read_text())
    record["metrics"]["all"] |= {"num_images": 5000, "num_classes": 9}
    path.write_text(json.dumps(record))
    found = list(verify.suspects(Run.read(path)))
    assert [line.partition(" published")[0] for line in found] == [
        "it has 5000 test images, 8100 are",
        "it has 9 classes, 10 are",
    ]


def test_where_most_differ_the_shared_causes_come_first(zero_shot, runs, capsys):
    zero_shot(accuracies=(50.0, 60.0, 40.0))
    zero_shot("OxfordPets", (90.0, 97.26, 89.1))
    assert main(["verify", str(runs.root)]) == 1
    lead = capsys.readouterr().out.split("Look first")[1].splitlines()
    assert lead[1].startswith("- what the data sets share, as 2 of 2 differ: weights")
    zero_shot("Food101", (90.1, 91.22, 86.1), model={"trainable_parameters": 0, "backbone_sha256": "other"})
    main(["verify", str(runs.root)])
    assert "weights: the runs read different ones" in capsys.readouterr().out


def test_all_alone_is_the_sources_matter(zero_shot, runs, capsys):
    zero_shot(accuracies=(56.48, 64.05, 46.0))
    assert main(["verify", str(runs.root)]) == 1
    assert "base and new agree and only all does not" in capsys.readouterr().out


def test_without_a_published_number_there_is_one_line(zero_shot, runs, capsys):
    zero_shot("birds")
    runs.add(trainer="ZeroshotCLIP", dataset="EuroSAT", zero_shot=True)  # of a bundled model
    assert main(["verify", str(runs.root)]) == 2
    assert "scripts/verify_setup.sh --data DATA makes them" in capsys.readouterr().err
    zero_shot()
    zero_shot("birds", seed=2)
    runs.add(trainer="ZeroshotCLIP", dataset="OxfordPets", zero_shot=True)  # of a bundled model
    assert main(["verify", str(runs.root)]) == 0
    output = capsys.readouterr().out
    assert output.count("birds has no published zero-shot number") == 1
    assert "OxfordPets" not in output


def test_the_scripts_runs_on_generated_data(tmp_path, monkeypatch, capsys):
    """The sweep over the data sets that are there, with a split file and without, then the comparison."""
    for name in ("EuroSAT", "ImageNetA"):
        build_layout(name, tmp_path / "data")
    monkeypatch.chdir(REPOSITORY)
    monkeypatch.setattr(Run, "demonstration", False)
    options = ["MODEL.BACKBONE.NAME", "bundled:tiny_clip", "INPUT.SIZE", "(48,48)", "DATALOADER.NUM_WORKERS", "0"]
    command = [*ZERO_SHOT, "--root", f"{tmp_path}/data", "--output", f"{tmp_path}/out", "--launcher", "inline"]
    assert sweep.main([*command, "--", *options]) == 0
    found = {run.dataset: [run.accuracy(split) for split in verify.SPLITS] for run in load_runs([tmp_path / "out"])}
    assert set(found) == {"EuroSAT", "ImageNetA"}
    base, new, everything = (
        {canonical_dataset(name): [row[place]] for name, row in found.items()} for place in range(3)
    )
    publish(monkeypatch, tmp_path / "published.json", base=base, new=new, all=everything)
    assert main(["verify", f"{tmp_path}/out"]) == 0
    publish(monkeypatch, tmp_path / "published.json", base=base, new=new, all=everything | {"eurosat": [1.0]})
    capsys.readouterr()
    assert main(["verify", f"{tmp_path}/out"]) == 1
    output = capsys.readouterr().out
    assert "EuroSAT: its split file has the SHA-256" in output
    assert "EuroSAT: it has 15 test images, 8100 are published" in output


def test_present_needs_a_root_with_data(tmp_path, capsys):
    assert sweep.main([*ZERO_SHOT, "--root", str(tmp_path)]) == 2
    assert f"there is none of the published data sets under {tmp_path}" in capsys.readouterr().err
    assert sweep.main(ZERO_SHOT) == 2
    assert "there is none without --root" in capsys.readouterr().err
