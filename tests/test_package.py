"""The installed package: a wheel of this folder, in an environment of its own, used in a user's folder."""

import json
import os
import re
import shlex
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.test_docs import ROOMS

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs/install.md").read_text(encoding="utf-8")
COMMANDS = [shlex.split(line)[1:] for line in re.findall(r"^    (promptclip .*)$", PAGE, flags=re.MULTILINE)]
NOTEBOOK = json.loads((ROOT / "docs/first_steps.ipynb").read_text(encoding="utf-8"))
CELLS = ["".join(cell["source"]) for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]
# Python code and commands in one process, which imports torch once
DRIVER = """
import importlib.util, json, sys
cells, commands = json.load(sys.stdin)
scope = {}
for cell in cells:
    exec(cell, scope)
found = [importlib.util.find_spec(name) for name in ("datasets", "results", "train")]
print([spec.origin for spec in found if spec and "promptclip" in str(spec.origin)])
from promptclip.__main__ import main
for sys.argv[1:] in commands:
    try:
        main()
    except SystemExit as end:
        print("status", end.code)
"""

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built in a folder of links, so that nothing is left in this one."""
    pytest.importorskip("pip")
    folder = tmp_path_factory.mktemp("source")
    for path in ROOT.iterdir():
        if path.name not in ("build", "dist", "output") and path.suffix != ".egg-info" and path.name[0] != ".":
            (folder / path.name).symlink_to(path)
    pip("wheel", "--no-build-isolation", "--wheel-dir", folder / "dist", folder)
    return next((folder / "dist").glob("*.whl"))


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """A folder of installed packages."""
    folder = tmp_path_factory.mktemp("installed")
    pip("install", "--no-compile", "--target", folder, wheel)
    return folder


def pip(command, *arguments):
    words = [sys.executable, "-m", "pip", command, "--quiet", "--no-index", "--no-deps", *map(str, arguments)]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.fixture
def user(tmp_path, installed):
    """Run a program in a user's folder, a git repository, and return what it printed."""
    folder = tmp_path / "user"
    subprocess.run(["git", "init", "--quiet", folder], check=True)
    paths = os.pathsep.join(filter(None, (str(installed), os.environ.get("PYTHONPATH"))))
    env = os.environ | {
        "PYTHONPATH": paths,
        "PYTHONDONTWRITEBYTECODE": "1",
        "OMP_NUM_THREADS": "1",
        "MPLBACKEND": "agg",
    }

    def run(*words, **how):
        command = [sys.executable, "-W", "ignore", *map(str, words)]
        done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, **how)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
        return done.stdout

    run.folder = folder
    return run


def test_the_wheel_holds_every_room_and_no_name_of_others(wheel):
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert {name.partition("/")[0] for name in names} == {"promptclip"}
    folders = {*ROOMS, "benchmarks", "configs"} - {"promptclip"}
    files = [path for folder in folders for path in (ROOT / folder).rglob("[!.]*") if path.is_file()]
    wanted = {path.relative_to(ROOT) for path in (*files, *ROOT.glob("*.py"), *ROOT.glob("assets/mini/*.zip"))}
    wanted = {f"promptclip/tree/{path.as_posix()}" for path in wanted if "__pycache__" not in path.parts}
    assert {name for name in names if not name.startswith("promptclip/tree/assets/")} - wanted == {
        "promptclip/__init__.py",
        "promptclip/__main__.py",
    }
    assert wanted - names == set()
    made = [name for name in names if name.startswith("promptclip/tree/assets/mini/") and not name.endswith(".zip")]
    assert made == []


def test_the_pages_commands_and_code_in_a_users_folder(user, installed):
    sweep, table, *others = COMMANDS
    assert [command[0] for command in COMMANDS] == ["sweep", "table", "predict", "datasets"]
    before = sorted(installed.rglob("*"))
    assert "1 finished" in user(installed / "bin" / "promptclip", *sweep)
    (results,) = user.folder.glob("out/**/results.json")
    record = json.loads(results.read_text(encoding="utf-8"))
    assert record["environment"]["git_revision"] is None  # not the user's repository's
    assert "| CoOp " in user(installed / "bin" / "promptclip", *table)
    blocks = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
    blocks += [cell for cell in CELLS if not cell.startswith("!")]  # its commands are the page's first two
    joined = ["datasets", "check", "Digits", "--root=assets"]
    absent = ["train", "--trainer", "CoOp", "--config-file", "configs/none.yaml"]
    out = user("-c", DRIVER, input=json.dumps([blocks, [*others, joined, absent, ["trian"]]]))
    assert "digit_seven/0007.png [('digit " in out
    assert f"base: accuracy {record['metrics']['base']['accuracy']:.2f}%\n" in out
    assert "\n[]\n" in out  # before a command runs, only the rooms are to be found
    assert f"{installed}/promptclip/tree/assets/digits/images/digit_three/0003.png: digit" in out
    assert out.count("\nDigits: ok\n") == 2
    assert re.findall(r"^status (.*)", out, flags=re.MULTILINE) == ["0", "0", "0", "2", "2"]
    assert sorted(installed.rglob("*")) == before
    assert {path.name for path in user.folder.iterdir()} == {".git", "out"}


def test_the_notebook_has_the_pages_commands_and_no_output():
    assert [shlex.split(cell)[1:] for cell in CELLS if cell.startswith("!")] == COMMANDS[:2]
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in NOTEBOOK["cells"])
    links = re.findall(r"\]\((.+?)\)", "".join(line for cell in NOTEBOOK["cells"] for line in cell["source"]))
    assert [link for link in links if not (ROOT / "docs" / link).is_file()] == []


def test_another_package_of_a_rooms_name_is_refused(user):
    (user.folder / "trainers.py").touch()
    code = "import trainers\ntry:\n    import promptclip\nexcept ImportError as error:\n    print(error)"
    assert "import promptclip before it" in user("-c", code)


def test_a_command_starts_without_a_librarys_warning():
    commands = "train, predict, look, sweep, reporting.__main__, datasets.__main__, prompting.checkpoint"
    imported = f"import {commands}, benchmarks.__main__, tools.pretrain_clip, tools.mini_figures"
    done = subprocess.run([sys.executable, "-c", imported], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
