"""Every command of the README runs; the long ones on small data, the two front commands in CI."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image

import train
from tests.clips import random_clip
from tests.ours import TRAINERS
from tests.test_train import arguments

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
DEMO_RUN = "output/demo/BMIP/mini_ep10_batch32/mini_digits/shots16/seed1"
FRONT = ("bash scripts/demo.sh", "bash scripts/test.sh")
SMALL = "OPTIM.MAX_EPOCH 1 DATASET.NUM_SHOTS 1"


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def commands():
    """Commands of the README's bash blocks, continued lines joined, comments gone."""
    text = "".join(blocks("bash")).replace("\\\n", " ")
    lines = (line.split(" # ")[0].rstrip().removesuffix("#").strip() for line in text.splitlines())
    return [line for line in lines if line]


def starting(prefix):
    found = [command for command in commands() if command.startswith(prefix)]
    assert found, f"the README has no command {prefix}"
    return found


@pytest.fixture
def demo_run(tmp_path_factory, monkeypatch):
    monkeypatch.chdir(ROOT)
    folder = tmp_path_factory.mktemp("demo")
    assert train.main(arguments("BMIP", folder, "DATASET.SUBSAMPLE_CLASSES", "base")) == 0
    return folder


def shell(command, **environment):
    command = command.replace("python ", f"{sys.executable} -W ignore ", 1) if command.startswith("python") else command
    env = os.environ | environment | {"OMP_NUM_THREADS": "1", "VIRTUAL_ENV": sys.prefix}
    done = subprocess.run(command, shell=True, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_every_command_is_known_here():
    known = ("python train.py", "python predict.py", "bash scripts/compare.sh", "python -m reporting", *FRONT)
    assert [c for c in commands() if not c.startswith(known)] == []


def test_the_two_front_commands_are_what_ci_runs():
    ci = (ROOT / ".ci" / "run").read_text()
    assert commands()[:2] == list(FRONT)
    assert all(command in ci for command in FRONT)


def test_real_data_command_on_a_small_vit_and_made_up_eurosat(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    classes = ["Forest", "Highway or Road", "River", "Sea or Lake"]
    split = {part: [] for part in ("train", "val", "test")}
    for label, name in enumerate(classes):
        folder = tmp_path / "eurosat" / "2750" / str(label)
        folder.mkdir(parents=True)
        for number, part in enumerate(("train", "val", "test")):
            Image.new("RGB", (64, 64), (label * 60, number * 60, 90)).save(folder / f"{part}.jpg")
            split[part].append([f"{label}/{part}.jpg", label, name])
    (tmp_path / "eurosat" / "split_zhou_EuroSAT.json").write_text(json.dumps(split))
    model = random_clip(
        2, image_resolution=224, vision_width=768, transformer_width=512, transformer_heads=8, embed_dim=512
    )
    torch.save(model.state_dict(), tmp_path / "vit.pt")
    (command,) = starting("python train.py")
    argv = shlex.split(command.replace("$DATA", str(tmp_path)))[2:]
    at = argv.index("--output-dir")
    argv[at + 1] = str(tmp_path / "run")
    argv[at:at] = ["--backbone", str(tmp_path / "vit.pt"), "--device", "cpu"]
    small = [
        "OPTIM.MAX_EPOCH",
        "1",
        "TRAIN.PATIENCE",
        "0",
        "DATALOADER.TRAIN_X.BATCH_SIZE",
        "2",
        "DATALOADER.NUM_WORKERS",
        "0",
    ]
    assert train.main([*argv, *small, "TRAINER.BMIP.PREC", "fp32", "TRAINER.BMIP.PROMPT_DEPTH", "2"]) == 0
    assert set(json.loads((tmp_path / "run" / "results.json").read_text())["metrics"]) == {"base", "new", "all"}


def test_compare_and_table_commands(tmp_path):
    (compare,), (table,) = starting("bash scripts/compare.sh"), starting("python -m reporting table")
    shown = shell(compare, OUTPUT=str(tmp_path / "compare"), OPTS=SMALL)
    assert all(name in shown for name in ("CoOp", "MaPLe", "BMIP"))
    again = shell(table.replace("output/compare", str(tmp_path / "compare")))
    assert all(name in again for name in ("CoOp", "MaPLe", "BMIP"))


def test_predict_commands(demo_run):
    for command in starting("python predict.py"):
        assert "digit" in shell(command.replace(DEMO_RUN, str(demo_run)))


def test_python_block(demo_run, capsys):
    (code,) = blocks("python")
    assert DEMO_RUN in code
    exec(compile(code.replace(DEMO_RUN, str(demo_run)), "README.md", "exec"), {})
    assert "digit_three/0003.png" in capsys.readouterr().out


def test_links_and_paths_exist():
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", README) if "://" not in link]
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []
    configs = [path for path in re.findall(r"configs/[\w./+-]+\.yaml", README) if not (ROOT / path).exists()]
    assert configs == []


def test_every_trainer_is_listed_with_what_it_trains():
    methods, measured = ((ROOT / f"docs/{page}.md").read_text(encoding="utf-8") for page in ("methods", "measured"))
    for page in (README, methods):
        assert [name for name in TRAINERS if f"`{name}`" not in page] == []
    rows = [line for line in methods.splitlines() if line.startswith("| `")]
    for name, _, parameters in re.findall(
        r"^\| (\w+) +\| (\S+) +\| ([\d,]+) +\|(?=.* \|$)", measured, flags=re.MULTILINE
    ):
        assert any(re.search(rf"(?<![\d,]){parameters}(?!\d|,\d)", row) for row in rows if f"`{name}`" in row), name


def test_the_citation_is_the_same_everywhere():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    (entries,) = blocks("bibtex")
    (paper,) = cited["references"]
    for text in (paper["title"], paper["doi"], *(author["family-names"] for author in paper["authors"])):
        assert text in re.sub(r"[{}]", "", entries)
    package = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert all(f'{key} = "{cited[key]}"' in package for key in ("version", "license"))
