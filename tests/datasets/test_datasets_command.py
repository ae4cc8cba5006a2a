"""The command line `python -m datasets`."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from datasets import __main__ as command
from datasets.__main__ import main
from datasets.check import Finding, Report
from datasets.sources import known_datasets
from tests.datasets.real_layouts import build_layout

ROOT = Path(__file__).resolve().parents[2]
ASSETS = str(ROOT / "assets")


def test_the_module_runs_and_says_how_it_went() -> None:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "datasets", "check", "digits", "--root", "assets"],
        cwd=ROOT, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Digits: ok\n")


def test_list_shows_every_data_set_and_where_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    build_layout("EuroSAT", tmp_path)
    build_layout("OxfordPets", tmp_path)
    (tmp_path / "oxford_pets" / "split_zhou_OxfordPets.json").unlink()
    assert main(["list", "--root", str(tmp_path)]) == 0
    rows = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line.strip()}
    assert set(known_datasets()) <= set(rows)
    assert rows["EuroSAT"].split() == ["EuroSAT", "10", "27,000", "eurosat/", "94", "MB", "MIT", "yes"]
    assert "without" in rows["OxfordPets"]
    assert rows["Food101"].split()[-1] == "no"
    assert "1,797" in rows["Digits"]
    assert "bundled" in rows["Digits"]
    assert "folder" in rows
    assert "Folder" not in rows


def test_list_without_a_root_does_not_guess(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    assert all(
        line.split()[-1] == "-"
        for line in capsys.readouterr().out.splitlines()
        if line.startswith(("EuroSAT", "UCF101"))
    )


def test_check_ends_with_1_when_something_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "EuroSAT", "--root", str(tmp_path)]) == 1
    output = capsys.readouterr().out
    assert "EuroSAT: 1 finding(s)" in output
    assert f"cure: correct --root, or fetch it: python -m datasets download EuroSAT --root {tmp_path}" in output


def test_check_all_checks_what_is_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in ("eurosat", "dtd"):
        (tmp_path / folder).mkdir()
    findings = {"EuroSAT": [], "DescribableTextures": []}
    monkeypatch.setattr(command, "check", lambda name, *rest: Report(name, findings[name]))
    assert main(["check", "all", "--root", str(tmp_path)]) == 0
    output = capsys.readouterr().out
    assert "not there: ImageNet, Caltech101" in output
    assert "EuroSAT: ok" in output
    findings["EuroSAT"].append(Finding("broken", "mend it"))
    assert main(["check", "all", "--root", str(tmp_path)]) == 1


def test_check_all_of_nothing_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "all", "--root", str(tmp_path)]) == 2
    out, error = capsys.readouterr()
    assert out == ""
    assert error.startswith(f"error: no published data set is under {tmp_path}. Fetch one: ")
    assert error.count("\n") == 1
    (tmp_path / "data/eurosat").mkdir(parents=True)
    assert main(["check", "all", "--root", str(tmp_path)]) == 2
    assert f"pass --root {tmp_path}/data\n" in capsys.readouterr().err


def test_check_all_one_level_too_deep_names_the_root(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "eurosat").mkdir()
    monkeypatch.chdir(tmp_path)
    assert main(["check", "all", "--root", "eurosat"]) == 2
    assert f"{tmp_path} has it: pass --root {tmp_path}\n" in capsys.readouterr().err


@pytest.mark.parametrize("name", [*known_datasets(), "all"])
def test_a_dry_run_names_every_source_and_writes_nothing(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["download", name, "--root", str(tmp_path / "data"), "--dry-run"]) == 0
    output = capsys.readouterr().out
    for info in known_datasets().values() if name == "all" else [known_datasets()[name]]:
        assert all(source.file in output and source.mirrors[-1].page in output for source in info.sources)
        assert str(tmp_path / "data" / info.folder) in output
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(("complete", "status"), [(True, 0), (False, 1)])
def test_download_says_whether_all_is_there(monkeypatch: pytest.MonkeyPatch, complete: bool, status: int) -> None:
    asked = []
    monkeypatch.setattr(
        command,
        "download",
        lambda info, root, wishes: asked.append((info.name, root, wishes.timeout)) or complete,
    )
    assert main(["download", "dtd", "--root", "data", "--timeout", "7"]) == status
    assert asked == [("DescribableTextures", "data", 7.0)]


def test_a_bundled_data_set_is_not_downloaded(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["download", "Digits", "--root", "x"]) == 2
    assert "no data set is called 'Digits'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "status", "text"),
    [
        (PermissionError(13, "Permission denied", "/data"), 1, "error: [Errno 13] Permission denied: '/data'\n"),
        (KeyboardInterrupt(), 130, "takes it up again"),
    ],
)
def test_errors_and_interruptions_are_told_in_a_line(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: BaseException,
    status: int,
    text: str,
) -> None:
    def fail(*arguments: object) -> None:
        raise error

    monkeypatch.setattr(command, "download", fail)
    assert main(["download", "dtd", "--root", "data"]) == status
    assert text in capsys.readouterr().err


def test_make_split_writes_a_split_of_its_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    build_layout("OxfordPets", tmp_path)
    assert main(["make-split", "oxford_pets", "--root", str(tmp_path), "--seed", "3"]) == 0
    path, use = capsys.readouterr().out.splitlines()[-2:]
    assert Path(path).is_file()
    assert use == f"to use it: DATASET.SPLIT_FILE {Path(path).name}"


def test_own_data_is_split_and_drawn_by_its_path(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    build_layout("EuroSAT", tmp_path)
    place = ["--root", str(tmp_path), "--path", "eurosat/2750"]
    assert main(["make-split", "folder", *place, "--seed", "3"]) == 0
    assert (tmp_path / "eurosat" / "2750" / "split_own_seed3.json").is_file()
    assert main(["export-selection", "folder", *place, "--shots", "1", "--seed", "3"]) == 0
    assert (tmp_path / "eurosat" / "2750" / "selection_drawn_1shots_seed3.json").is_file()
    assert "DATASET.NUM_SHOTS 1" in capsys.readouterr().out.splitlines()[-1]


def test_import_selection_hands_its_arguments_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked = []
    monkeypatch.setattr(command, "import_selection", lambda *given: asked.append(given) or tmp_path / "out.json")
    assert main(["import-selection", "eurosat", "shot_1-seed_1.pkl", "--root", "data"]) == 0
    assert main(["import-selection", "EuroSAT", "a.pkl", "--root", "data", "--out", "b.json"]) == 0
    assert asked == [("EuroSAT", "shot_1-seed_1.pkl", "data", None), ("EuroSAT", "a.pkl", "data", "b.json")]


@pytest.mark.parametrize("arguments", [[], ["check"], ["check", "EuroSAT"], ["download", "--root", "x"], ["mend"]])
def test_what_is_not_understood_ends_with_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert "usage: python -m datasets" in capsys.readouterr().err
