"""A fork's own method, the one of docs/new_method.md: it gives its row, and the repository's tests still pass."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs/new_method.md").read_text(encoding="utf-8")
LINKED = ("assets", "docs", "tools", "benchmarks")
TESTS = ("test_configs.py", "test_readme.py", "test_scripts.py", "test_sweep_queue.py", "trainers/test_registry.py")
NAMES = "every_trainer or every_method or header_says or defaults_are or no_key_twice or demo_runs"
SMALL = "OPTIM.MAX_EPOCH 1 DATASET.NUM_SHOTS 1"


def block(language):
    (found,) = re.findall(rf"```{language}\n(.*?)```", PAGE, flags=re.DOTALL)
    return found


@pytest.fixture(scope="module")
def fork(tmp_path_factory):
    """A copy of the repository with the page's method, and one more setting of CoOp with a copied header."""
    folder = tmp_path_factory.mktemp("fork")
    packages = {path.parts[0] for path in (p.relative_to(ROOT) for p in ROOT.glob("*/*.py"))} | {"configs", "scripts"}
    for name in packages - set(LINKED):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for path in (path for kind in ("py", "toml", "md", "txt") for path in ROOT.glob(f"*.{kind}")):
        shutil.copy(path, folder)
    for name in LINKED:
        (folder / name).symlink_to(ROOT / name)
    for language, path in (("python", "trainers/lasp.py"), ("yaml", "configs/trainers/LASP/tiny_c4_ep50.yaml")):
        assert f"`{path}`" in PAGE
        (folder / path).parent.mkdir(exist_ok=True)
        (folder / path).write_text(block(language), encoding="utf-8")
    shutil.copy(ROOT / "configs/trainers/CoOp/vit_b16_ep50.yaml", folder / "configs/trainers/CoOp/mine.yaml")
    return folder


def shell(command, folder, **environment):
    env = os.environ | {"OMP_NUM_THREADS": "1", "VIRTUAL_ENV": sys.prefix} | environment
    command = re.sub("^python ", f"{sys.executable} -W ignore ", command)
    done = subprocess.run(command, shell=True, cwd=folder, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    return done.stdout


def test_the_pages_method_gives_its_row(fork):
    compare, *reports = block("bash").splitlines()
    shell(compare, fork, OPTS=SMALL)
    table, comparison = (shell(command, fork) for command in reports)
    assert re.search(r"^\| LASP .*\| 1, 2, 3 \(n=3\)", table, flags=re.MULTILINE)
    assert "LASP minus CoOp" in comparison


def test_a_forks_own_method_passes(fork):
    tests = " ".join(f"tests/{name}" for name in TESTS)
    shell(f"python -m pytest -q -p no:cacheprovider -p no:xdist -k '{NAMES}' {tests}", fork)
    check = "import train; assert 'LASP' in train.TRAINER_REGISTRY; assert 'TRAINER.LASP.W' in train.RANGES"
    shell(f'python -c "{check}"', fork)


def test_a_trainer_written_for_dassl_drops_in(fork):
    """docs/from_coop.md: a file with its own model, and the lines that add its keys; CoOp's two steps, base and new."""
    (lines,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs/from_coop.md").read_text(encoding="utf-8"), re.DOTALL)
    code = (ROOT / "tests/dassl/coop_style_trainer.py").read_text(encoding="utf-8")
    code = code.replace("CoOpStyle", "XYZ").replace("COOPSTYLE", "XYZ")
    (fork / "trainers/xyz.py").write_text(code + lines.replace("fp16", "fp32"), encoding="utf-8")
    (fork / "configs/trainers/XYZ").mkdir()
    config = "INPUT:\n  SIZE: (8, 8)\nOPTIM:\n  MAX_EPOCH: 1\nDATALOADER:\n  NUM_WORKERS: 0\n"
    (fork / "configs/trainers/XYZ/tiny.yaml").write_text(config, encoding="utf-8")
    for script in ("base2new_train.sh", "base2new_test.sh"):
        shell(f"bash scripts/{script} XYZ digits 1", fork, SHOTS="1")
    results = fork / "output/base2new/test_new/digits/shots_1/XYZ/tiny/seed1/results.json"
    assert {"base", "new"} == set(json.loads(results.read_text())["metrics"])
