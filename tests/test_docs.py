"""The pages of docs/ name files and commands that exist, and the rooms import as docs/architecture.md says."""

import ast
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([*ROOT.glob("docs/*.md"), ROOT / "README.md", ROOT / "SECURITY.md"])
ARCHITECTURE = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
FIGURES = sorted(ROOT.glob("docs/*.svg"))
FIGURE = (ROOT / "docs/architecture.svg").read_text(encoding="utf-8")
# Files that a reader makes
ELSEWHERE = ("trainers/lasp.py", "configs/trainers/LASP/tiny_c4_ep50.yaml", "trainers/xyz.py")
MIN_FONT = 12


def named_files(text):
    """Paths in code marks, or in the figure's file lines."""
    found = re.findall(r"`([\w./+-]+)`", text) + re.findall(r'class="file"[^>]*>([\w./]+)<', text)
    return {path for path in found if "/" in path or path.endswith(".py")}


def test_every_file_of_the_architecture_exists():
    named = named_files(ARCHITECTURE) | named_files(FIGURE)
    assert len(named) > 25
    assert sorted(path for path in named if not (ROOT / path).exists()) == []


@pytest.mark.parametrize("path", FIGURES, ids=lambda path: path.name)
def test_a_figure_is_readable(path):
    figure = path.read_text(encoding="utf-8")
    assert min(float(size) for size in re.findall(r"font-size: ([\d.]+)px", figure)) >= MIN_FONT
    assert "prefers-color-scheme: dark" in figure
    assert 'class="page"' in figure  # a ground of its own, whatever the page around it has


def rooms():
    """Room -> the rooms that it may import from, by the page's table."""
    table = ARCHITECTURE[ARCHITECTURE.index("| room |") :].split("\n\n")[0].splitlines()[2:]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table]
    return {
        re.fullmatch("`(.+)`", row[0])[1]: set(re.findall("`(.+?)`", row[2])) for row in rows if ".py" not in row[0]
    }


ROOMS = rooms()


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_from_rooms_below(room):
    found = set()
    for path in (ROOT / room).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                found.add(node.module.partition(".")[0])
    assert found & set(ROOMS) - {room} - ROOMS[room] == set()


def test_no_two_rooms_import_each_other():
    order = list(ROOMS)
    assert [(a, b) for a in order for b in ROOMS[a] if order.index(b) < order.index(a)] == [("dassl", "extras")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    text = page.read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in link]
    for link in links:
        path, _, anchor = link.partition("#")
        target = (page.parent / path) if path else page
        assert target.exists(), link
        if anchor:
            heads = re.findall(r"^#+ (.*)$", target.read_text(encoding="utf-8"), flags=re.MULTILINE)
            assert anchor in {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}, link


@pytest.mark.parametrize("page", [p for p in PAGES if p.name != "architecture.md"], ids=lambda page: page.name)
def test_named_modules_and_paths_exist(page):
    text = page.read_text(encoding="utf-8")
    modules = {name.rstrip(".") for name in re.findall(r"python (?:-W ignore )?-m ([\w.]+)", text)}
    assert [name for name in sorted(modules) if importlib.util.find_spec(name) is None] == []
    folders = "|".join([*ROOMS, "assets", "benchmarks", "configs", "scripts", "tests", "tools"])
    paths = set(re.findall(rf"(?<![\w./$-])((?:{folders})/[\w./+-]*\w\.(?:py|sh|yaml|json|md))", text)) - set(ELSEWHERE)
    assert [path for path in sorted(paths) if not (ROOT / path).exists()] == []


def test_the_new_methods_file_passes_the_style_check():
    """scripts/test.sh checks it as soon as a reader has it."""
    (code,) = re.findall(
        r"```python\n(.*?)```", (ROOT / "docs/new_method.md").read_text(encoding="utf-8"), flags=re.DOTALL
    )
    for check in (["check"], ["format", "--check"]):
        command = [sys.executable, "-m", "ruff", *check, "--no-cache", "--stdin-filename", "trainers/lasp.py", "-"]
        done = subprocess.run(command, cwd=ROOT, input=code, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
