"""Tables of measured numbers: what is cut out of a script's output, where it goes, what is refused."""

import shlex
import sys
from pathlib import Path

import pytest

import sweep
from tools import measured_tables
from tools.measured_tables import SECTIONS, Section, main, refresh, replaced, table_in

ROWS = "| Method | new |\n|--------|-----|\n| BMIP   | 9.0 |\n"
LEGEND = "- A note on this | and that.\n\n- **Warning:** a seed is missing.\n"
PRINTED = f"[1/1] finished\n\n## Open-world generalization\n\n### Digits\n\n{ROWS}\n{LEGEND}"
PAGE = "# Page\n\n<!-- demo: begin -->\nold\n<!-- demo: end -->\n\nThe rest.\n"
BACKWARDS = "<!-- demo: end -->\nold\n<!-- demo: begin -->\n"


@pytest.fixture
def page(tmp_path):
    (tmp_path / "page.md").write_text(PAGE)
    return tmp_path / "page.md"


def printing(text, status=0):
    code = f"import sys; print({text!r}.replace('OUTPUT', sys.argv[1]), end=''); sys.exit({status})"
    return Section("demo", "page.md", ("python -c pass", f"python -c {shlex.quote(code)} {{output}}/runs"))


def test_the_table_is_cut_out_of_what_a_script_prints():
    assert table_in(PRINTED, legend=True) == f"{ROWS}\n{LEGEND}"
    assert table_in(PRINTED, legend=False) == ROWS
    assert table_in(f"{ROWS}\nTwo operations.\n", legend=True) == f"{ROWS}\nTwo operations.\n"
    assert table_in("nothing\n", legend=True) == ""


def test_headings_of_several_blocks_stay():
    printed = f"## Title\n\n### base\n\n{ROWS}\n### new\n\n{ROWS}\n{LEGEND}"
    assert table_in(printed, legend=True) == printed.removeprefix("## Title\n\n")


def test_a_table_takes_its_place_and_the_rest_of_the_page_stays(page, tmp_path, capsys):
    refresh(printing(PRINTED.replace("a seed is missing", "OUTPUT")), Path("/runs"), tmp_path)
    new = LEGEND.replace("a seed is missing", "/runs/runs")
    assert page.read_text() == PAGE.replace("old\n", f"{ROWS}\n{new}")
    assert "finished" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "status", "message"), [(PRINTED, 1, "ended with status 1"), ("none\n", 0, "printed no table")]
)
def test_a_failing_script_changes_no_page(text, status, message, page, tmp_path):
    with pytest.raises(ValueError, match=message):
        refresh(printing(text, status), tmp_path, tmp_path)
    assert page.read_text() == PAGE
    assert [path.name for path in tmp_path.iterdir()] == ["page.md"]


@pytest.mark.parametrize("text", ["no marks", PAGE + PAGE, BACKWARDS])
def test_a_page_without_its_marks_is_refused(text):
    with pytest.raises(ValueError, match="page.md must have the lines <!-- demo: begin --> and <!-- demo: end --> on"):
        replaced(text, "demo", "", "page.md")


@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section.name)
def test_every_table_has_its_place_and_its_script(section):
    path = measured_tables.ROOT / section.file
    text = path.read_text(encoding="utf-8")
    assert replaced(text, section.name, ROWS, path) != text
    for command in section.commands:
        words = shlex.split(command)
        assert words[0] == "python"
        if words[1] == "sweep.py":
            assert sweep.plans_of(sweep.parse(words[2:]))
        else:
            assert {"reporting", "benchmarks.cost"} & set(words)


def test_the_list_names_every_command_and_a_wrong_name_the_right_ones(capsys):
    assert main(["--list"]) == 0
    listed = capsys.readouterr().out
    assert listed.count("\n") == len(SECTIONS)
    assert "few_shot_curve: python sweep.py --table few_shot_curve --trainers ZeroshotCLIP CoOp CoCoOp" in listed
    assert sys.executable not in listed
    with pytest.raises(SystemExit):
        main(["demo"])
    assert "no table 'demo'; there are: miniature, open_world" in capsys.readouterr().err
