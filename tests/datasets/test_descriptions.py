"""python -m datasets descriptions: what to ask a language model for, and what is wrong with its answer."""

import json

import pytest

from datasets.__main__ import main
from prompting.descriptions import problems
from tests.datasets.conftest import ASSETS


def test_the_instruction_has_every_class_and_the_shape_of_the_answer(tmp_path, capsys):
    (tmp_path / "classes.txt").write_text("polar_bear\n\ncrème brûlée\n", encoding="utf-8")
    assert main(["descriptions", "prompt", "--classes", str(tmp_path / "classes.txt")]) == 0
    text = capsys.readouterr().out
    assert text.endswith("Classes:\npolar bear\ncrème brûlée\n")
    assert "these 2 class names as keys" in text
    example = text[text.index("{") : text.index("}") + 1]
    assert list(json.loads(example)) == ["polar bear", "crème brûlée"]


def test_what_is_missing_unknown_empty_and_too_long_is_said():
    table = {
        "polar bear": ["A polar bear is white.", " "],
        "Tench": ["A tench is a fish."],
        "hen": [],
        "gecko": ["word " * 76],
    }
    assert list(problems(table, ["polar_bear", "tench", "hen", "gecko", "crane"])) == [
        "'tench' has no sentence",
        "'hen' has no sentence",
        "'crane' has no sentence",
        "'polar bear': sentence 2 is empty",
        "'Tench' is no class: is 'tench' meant?",
        f"'gecko': sentence 1 has 78 tokens, start and end counted; CLIP takes 77: {'word ' * 8!r}...",
    ]


def test_a_file_is_checked_against_a_data_sets_classes(tmp_path, capsys):
    path = tmp_path / "sentences.json"
    check = ["descriptions", "check", str(path), "--dataset", "Digits", "--root", f"{ASSETS}"]
    words = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
    names = [f"digit {word}" for word in words]
    path.write_text(json.dumps({name: [f"The {name}."] * 3 for name in names}))
    assert main(check) == 0
    assert capsys.readouterr().out == f"{path}: 10 classes, 3 to 3 sentences each\n"
    path.write_text(json.dumps({name: [f"The {name}."] for name in names[1:]}))
    assert main(check) == 1
    assert capsys.readouterr().out.endswith("  WRONG: 'digit zero' has no sentence\n")


def test_class_names_of_own_data_need_no_split_and_none_is_written(tmp_path, capsys):
    for name in ("tench", "hen"):
        (tmp_path / "birds" / name).mkdir(parents=True)
        (tmp_path / "birds" / name / "1.png").write_bytes(b"")
    (tmp_path / "birds.csv").write_text("image,label\na.png,1\nb.png,0\n")
    (tmp_path / "classnames.txt").write_text("polar bear\ncrane\n")
    before = sorted(tmp_path.rglob("*"))
    for name, path, classes in (("folder", "birds", "hen\ntench"), ("csv", "birds.csv", "polar bear\ncrane")):
        data = ["--dataset", name, "--root", str(tmp_path), "--path", path]
        assert main(["descriptions", "prompt", *data]) == 0, capsys.readouterr().err
        assert capsys.readouterr().out.endswith(f"Classes:\n{classes}\n")
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not valid JSON"),
        ('["a"]', "should hold {class name: [sentences]}"),
        ('{"cat": ["A cat."], "polar bear": "White."}', "but class 2, 'polar bear', has no list of sentences: mend it"),
        ('{"cat": ["A cat.", 5]}', "but class 1, 'cat': sentence 2 is 5: mend it"),
        (None, "no file"),
    ],
)
def test_what_is_no_such_file_is_one_line(tmp_path, capsys, content, message):
    if content:
        (tmp_path / "sentences.json").write_text(content)
    (tmp_path / "classes.txt").write_text("cat")
    command = ["descriptions", "check", f"{tmp_path}/sentences.json", "--classes", f"{tmp_path}/classes.txt"]
    assert main(command) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert "''" not in error  # which only a configuration's key could be set to


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("\n \n", "classes.txt has no class names: write one a line"),
        ("cat\n\nCat\n", r"'cat' (CLASSES, line 1) and 'Cat' (CLASSES, line 3) give the same prompt"),
    ],
)
def test_a_list_without_classes_or_with_one_twice_is_one_line(tmp_path, capsys, content, message):
    path = tmp_path / "classes.txt"
    path.write_text(content)
    assert main(["descriptions", "prompt", "--classes", str(path)]) == 1
    out, error = capsys.readouterr()
    assert message.replace("CLASSES", str(path)) in error
    assert (out, error.count("\n")) == ("", 1)
