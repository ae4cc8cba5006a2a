"""Wrong input, over every entry point: a status that is not 0, one line that names it and the cure, nothing written."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import look
import predict
import sweep
import train
from datasets.__main__ import main as datasets_main
from prompting import checkpoint
from reporting.__main__ import main as reporting_main
from tests.bad_input import (
    CHECKPOINT,
    DATASETS,
    LOOK,
    PREDICT,
    REPORTING,
    SWEEPS,
    TRAIN,
    make_files,
    with_infinite_accuracy,
)
from tests.test_train import arguments

TABLE = {
    "train.py": (train.main, TRAIN),
    "predict.py": (predict.main, PREDICT),
    "sweep.py": (sweep.main, SWEEPS),
    "reporting": (reporting_main, REPORTING),
    "datasets": (datasets_main, DATASETS),
    "look.py": (look.main, LOOK),
    "prompting.checkpoint": (checkpoint.main, CHECKPOINT),
}
CASES = [(entry, case) for entry, (_, cases) in TABLE.items() for case in cases]


@pytest.fixture(scope="module")
def run(tmp_path_factory, request):
    folder = tmp_path_factory.mktemp("finished") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(request.config.rootpath)
        patch.setattr(train, "collect_env_info", str)
        assert train.main(arguments("CoOp", folder, "OPTIM.MAX_EPOCH", "1")) == 0
    return folder


@pytest.fixture(scope="module")
def files(tmp_path_factory, run, request):
    folder = tmp_path_factory.mktemp("files")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(request.config.rootpath)
        make_files(folder)
    with_infinite_accuracy(run / "results.json", folder)
    return folder


@pytest.fixture
def folder(files, monkeypatch, request):
    monkeypatch.chdir(request.config.rootpath)
    monkeypatch.setattr(train, "collect_env_info", str)  # takes seconds, and says nothing about the input
    yield files
    shutil.rmtree(files / "output", ignore_errors=True)  # so that a case that fails does not fail the next


def command(entry, wrong, folder, run):
    """The words of a case's command line; train.py's come after those of a good one."""
    wrong = [word.replace("{tmp}", str(folder)).replace("{run}", str(run)) for word in wrong]
    if entry == "sweep.py":
        cut = wrong.index("--") if "--" in wrong else len(wrong)
        return [*wrong[:cut], "--output", str(folder / "output"), *wrong[cut:]]
    if entry != "train.py":
        return wrong
    good = arguments("BMIP", folder / "output")
    flags, pairs = (wrong, []) if wrong[0].startswith("--") else ([], wrong)
    first_pair = next(place for place, word in enumerate(good) if re.fullmatch(r"[A-Z_]+(\.[A-Z_]+)+", word))
    return [*good[:first_pair], *flags, *good[first_pair:], *pairs]


def tree(*folders):
    """Every file below some folders, with its size and time of change."""
    return {
        path: (path.stat().st_size, path.stat().st_mtime_ns)
        for folder in folders
        for path in Path(folder).rglob("*")
        if path.is_file() or not any(path.iterdir())
    }


@pytest.mark.parametrize(("entry", "case"), CASES, ids=[f"{entry}: {case}" for entry, case in CASES])
def test_wrong_input_is_one_line_and_nothing_is_written(entry, case, folder, run, capsys):
    main, cases = TABLE[entry]
    wrong, message = cases[case]
    before = tree(folder, run)
    try:
        status = main(command(entry, wrong, folder, run))
        usage = False
    except SystemExit as stopped:  # argparse
        status, usage = stopped.code, True
    lines = capsys.readouterr().err.strip().splitlines()
    assert status in (1, 2)
    assert re.search(message, lines[-1]), lines
    assert "Traceback" not in "".join(lines)
    if usage:
        assert lines[0].startswith("usage: ")
    else:
        if entry == "predict.py":  # whose stdout is the result; what it is doing goes to stderr
            del lines[:-1]
        assert [line.startswith("error: ") for line in lines] == [True], lines
    assert tree(folder, run) == before
    assert not Path("executed").exists()


def test_the_table_has_sixty_cases_and_more():
    assert len(CASES) >= 60
    assert all(len(cases) >= 7 for _, cases in TABLE.values())


FIRST = {
    "train.py": ["train.py", "--config-file", "none.yaml"],
    "predict.py": ["predict.py", "none.png"],
    "sweep.py": ["sweep.py", "--trainers", "BMPI"],
    "reporting": ["-m", "reporting", "table", "nowhere"],
    "datasets": ["-m", "datasets", "check", "Caltech", "--root", "nowhere"],
}


@pytest.mark.parametrize("entry", FIRST)
def test_the_process_ends_alike_and_debug_shows_the_traceback(entry, request):
    done = subprocess.run(
        [sys.executable, *FIRST[entry], "--debug"], cwd=request.config.rootpath, capture_output=True, text=True
    )
    lines = done.stderr.strip().splitlines()
    assert done.returncode == 2
    assert lines[0].startswith("Traceback")
    assert lines[-1].startswith("error: ")
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("script", "option"),
    [("train.py", "--help"), ("predict.py", "--help"), ("look.py", "--help"), ("train.py", "--seed=x")],
)
def test_options_are_read_before_anything_that_takes_seconds_is_imported(script, option, request):
    command = [sys.executable, "-X", "importtime", script, option]
    result = subprocess.run(command, cwd=request.config.rootpath, capture_output=True, text=True, check=False)
    assert "usage" in result.stdout + result.stderr
    assert not re.search(r"\| +(torch|numpy|yaml)$", result.stderr, flags=re.M)
