"""A fork's own method passes this repository's tests: they hold for what tests/ours.py lists."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
COPIED = (
    "common",
    "configs",
    "dassl",
    "datasets",
    "results",
    "prompting",
    "reporting",
    "scripts",
    "sweeping",
    "tests",
    "trainers",
)
TESTS = ("test_configs.py", "test_readme.py", "test_scripts.py", "test_sweep_queue.py", "trainers/test_registry.py")
NAMES = "every_trainer or every_method or header_says or defaults_are or no_key_twice or demo_runs"


@pytest.fixture
def fork(tmp_path):
    """A copy of the repository with one more trainer, made of CoOp's file, and two settings with copied headers."""
    for folder in COPIED:
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for path in (*ROOT.glob("*.py"), *ROOT.glob("*.toml"), *ROOT.glob("*.md")):
        shutil.copy(path, tmp_path)
    for name in ("assets", "docs", "tools", "benchmarks"):
        (tmp_path / name).symlink_to(ROOT / name)
    code = (ROOT / "trainers/coop.py").read_text(encoding="utf-8")
    code = code.replace('"COOP"', '"MY_METHOD"').replace("class CoOp(", "class MyMethod(")
    (tmp_path / "trainers/my_method.py").write_text(code, encoding="utf-8")
    setting = (ROOT / "configs/trainers/CoOp/vit_b16_ep50.yaml").read_text(encoding="utf-8")
    (tmp_path / "configs/trainers/MyMethod").mkdir()
    (tmp_path / "configs/trainers/MyMethod/mine.yaml").write_text(setting.replace("COOP:", "MY_METHOD:"))
    (tmp_path / "configs/trainers/CoOp/mine.yaml").write_text(setting)
    return tmp_path


def test_a_forks_own_method_passes(fork):
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-k", NAMES]
    done = subprocess.run(
        [*command, *(f"tests/{name}" for name in TESTS)],
        cwd=fork,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    check = "import train; assert 'MyMethod' in train.TRAINER_REGISTRY; assert 'TRAINER.MY_METHOD.PREC' in train.RANGES"
    subprocess.run([sys.executable, "-c", check], cwd=fork, check=True, timeout=120)
