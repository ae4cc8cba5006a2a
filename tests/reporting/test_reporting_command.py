import json
import subprocess
import sys
from pathlib import Path

import pytest

from reporting.__main__ import main

ROOT = Path(__file__).resolve().parents[2]


def test_the_command_prints_the_table(runs):
    runs.add()
    command = [sys.executable, "-m", "reporting", "table", "--protocol", "open_world", str(runs.root)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stderr) == (0, "")
    assert "| CoOp     | 1 (n=1) |" in done.stdout


def test_output_goes_to_a_file_and_replaces_one_only_when_told(runs, tmp_path, capsys):
    runs.add()
    target = tmp_path / "tables" / "table.json"
    target.parent.mkdir()
    target.write_text("old")
    command = ["table", "--format", "json", "--output", str(target), str(runs.root)]
    assert main(command) == 2
    assert f"{target} exists already: choose another name, or --force" in capsys.readouterr().err
    assert target.read_text() == "old"
    assert main([*command, "--force"]) == 0
    assert json.loads(target.read_text())["protocol"] == "open_world"
    assert [path.name for path in target.parent.iterdir()] == ["table.json"]
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("arguments", [["--format", "csv"], ["--output", "{folder}/table.md"]])
def test_warnings_reach_the_terminal_where_the_output_does_not_show_them(runs, capsys, arguments):
    runs.add(seed=1)
    runs.add(seed=2)
    runs.add(trainer="MaPLe")
    assert main(["table", *(text.format(folder=runs.root) for text in arguments), str(runs.root)]) == 0
    assert "warning: MaPLe on digits: other rows have seed 2" in capsys.readouterr().err


def test_bad_runs_end_with_status_2_and_their_paths(runs, capsys):
    path = runs.add()
    path.write_text(path.read_text()[:100])
    assert main(["table", str(path)]) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith(f"error: {path}: not valid JSON")


def test_a_failed_write_leaves_nothing_behind(runs, capsys):
    runs.add()
    folder = runs.root / "folder"
    folder.mkdir()
    assert main(["table", "--output", str(folder), str(runs.root)]) == 2
    assert "error: " in capsys.readouterr().err
    assert not list(runs.root.glob(".folder*"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["table", "--digits", "-1", "."], "--digits must be between 0 and 10, got -1"),
        (["table", "no/such/folder"], "no/such/folder: no such file or folder"),
    ],
)
def test_bad_arguments_are_named(arguments, message, capsys):
    assert main(arguments) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [[], ["chart"], ["table"], ["table", "--protocol", "chess", "."]])
def test_unknown_commands_and_choices_are_refused(arguments, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    assert "usage:" in capsys.readouterr().err


COMMANDS = (["table"], ["compare", "CoOp", "BMIP"], ["plot", "seeds", "-o", "{folder}/plot.svg"])


@pytest.mark.parametrize("command", COMMANDS)
def test_of_several_protocols_one_can_be_chosen(runs, capsys, command):
    for trainer in ("CoOp", "BMIP"):
        runs.add(trainer=trainer)
        runs.add({"all": {"accuracy": 50.0}}, trainer=trainer, protocol="few_shot")
    command = [*(text.format(folder=runs.root) for text in command), *(["--force"] if "plot" in command else [])]
    assert main([*command, str(runs.root)]) == 2
    error = capsys.readouterr().err
    assert "choose with --protocol (few_shot, open_world)" in error
    assert len(error.splitlines()) == 1
    for protocol in ("few_shot", "open_world"):
        assert main([*command, str(runs.root), "--protocol", protocol]) == 0
    assert main([*command, str(runs.root), "--protocol", "zero_shot"]) == 2
    assert "no run of protocol zero_shot; there are: few_shot, open_world" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["radar", "gain", "seeds"])
def test_few_shot_runs_of_one_number_of_shots_can_be_drawn(runs, capsys, kind):
    for trainer in ("CoOp", "BMIP"):
        for dataset in ("a", "b", "c"):
            for shots in (1, 16):
                accuracy = {"all": {"accuracy": 50.0 + shots}}
                runs.add(accuracy, trainer=trainer, dataset=dataset, shots=shots, protocol="few_shot")
    command = ["plot", kind, str(runs.root), "-o", str(runs.root / "plot.svg")]
    assert main(command) == 2
    assert "is of one number of shots: choose with --shots (1, 16)" in capsys.readouterr().err
    assert main([*command, "--shots", "16"]) == 0


def test_a_plot_of_several_protocols_is_refused_before_matplotlib_is_imported(runs):
    runs.add()
    runs.add(protocol="few_shot")
    code = "import sys; from reporting.__main__ import main; main(sys.argv[1:]); sys.exit('matplotlib' in sys.modules)"
    command = [sys.executable, "-c", code, "plot", "gain", str(runs.root), "-o", str(runs.root / "plot.svg")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, "choose with --protocol" in done.stderr) == (0, True)
