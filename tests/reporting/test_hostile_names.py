"""Names in a results.json from somebody else stay text in every format that a program interprets."""

import json
import re

import pytest

from reporting.__main__ import main
from reporting.formats import LATEX_PACKAGES

NAME = 'x<script>hack()</script>" onload="hack() \\input{/etc/passwd} \\write18{hack} $%&_^~#| <b>'
COMMANDS = {
    "table": ["table"],
    "compare": ["compare", NAME, "CoOp"],
}


@pytest.fixture
def hostile(runs):
    """Two methods over two seeds; one bears the name, as do its setting, data set and backbone."""
    for seed in (1, 2, 3):
        runs.add(seed=seed)
        path = runs.add(seed=seed, trainer="placeholder")
        names = dict.fromkeys(("trainer", "setting", "backbone"), NAME)
        path.write_text(json.dumps(json.loads(path.read_text()) | names))
    return runs.root


def output(command, form, folder, capsys):
    assert main([*COMMANDS[command], str(folder), "--format", form]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("command", COMMANDS)
def test_html(command, hostile, capsys):
    page = output(command, "html", hostile, capsys)
    assert "hack()" in page
    assert page.count("<script") == 1  # the page's own
    assert not re.search(r"<[^>]*\bhack\(\)", page)
    assert not re.search(r"<b>", page)


@pytest.mark.parametrize("command", COMMANDS)
def test_latex(command, hostile, capsys):
    text = output(command, "latex", hostile, capsys)
    assert r"\textbackslash{}input\{/etc/passwd\}" in text
    assert not re.search(r"\\(input|write)", text)
    first, rest = text.split("\n", 1)
    assert first == LATEX_PACKAGES
    assert not re.search(r"(?<!\\)[#%]", rest)


@pytest.mark.parametrize("command", COMMANDS)
def test_markdown(command, hostile, capsys):
    text = output(command, "md", hostile, capsys)
    assert "hack()" in text
    assert "<script" not in text
    assert "<b>" not in text
