"""The scripts in scripts/: help, dry runs, wrong use, and compare.sh end to end on the bundled digits."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import train
from sweeping.plan import OWN_CLASSES, TAUGHT
from tests.ours import TRAINERS

REPOSITORY = Path(__file__).resolve().parent.parent
SCRIPTS = {"setup.sh": [], "test.sh": [], "test_lowest.sh": [], "demo.sh": [], "compare.sh": ["digits", "1", "CoOp"]}
FOLDER = REPOSITORY / "scripts"
TRIPLE = ["BMIP", "digits", "1"]
QUICK = {"SHOTS": "1", "OPTS": "OPTIM.MAX_EPOCH 1"}
MAPLE_RUN = "MaPLe/tiny_c2_ep10_batch4_2ctx/digits/shots1/seed1"


@pytest.fixture(autouse=True)
def repository_folder(monkeypatch, request):
    monkeypatch.chdir(request.config.rootpath)


def run(script, *arguments, **variables):
    """Run a script as a user would, with the Python of the tests; its settings come from ``variables`` alone."""
    ours = re.compile(r"CFG_|(SEEDS|SHOTS|OUTPUT|OPTS|DATA)$")
    environment = {key: value for key, value in os.environ.items() if not ours.match(key)}
    environment |= {"VIRTUAL_ENV": sys.prefix, "OMP_NUM_THREADS": "1", **variables}
    command = ["bash", f"{REPOSITORY}/scripts/{script}", *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)


def training_commands(output):
    """The train.py lines of a dry run, parsed by train.py's own parser."""
    lines = [shlex.split(line) for line in output.splitlines() if " train.py " in line]
    return [train.build_parser().parse_args(words[words.index("train.py") + 1 :]) for words in lines]


def runs_of(output):
    """What a dry run would train: (trainer, setting, seed)."""
    return [(args.trainer, Path(args.config_file).stem, args.seed) for args in training_commands(output)]


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_and_unknown_option(script):
    shown = run(script, "--help")
    assert shown.returncode == 0
    assert f"Usage: scripts/{script}" in shown.stdout
    assert "--dry-run" in shown.stdout
    assert "#" not in shown.stdout.splitlines()[0]
    if script != "test.sh":  # whose other arguments are pytest's
        refused = run(script, "--no-such-option")
        assert refused.returncode == 2
        assert refused.stderr == f"{script}: unknown option --no-such-option (--help says how it is used)\n"


@pytest.mark.parametrize("script", SCRIPTS)
def test_dry_run_prints_commands_and_does_nothing(script, tmp_path):
    shown = run(script, "--dry-run", *SCRIPTS[script], OUTPUT=str(tmp_path / "output"))
    assert shown.returncode == 0, shown.stderr
    for line in shown.stdout.splitlines():
        assert shlex.split(line)[0] in ("bash", "uv") or "python" in shlex.split(line)[0], line
    assert list(tmp_path.iterdir()) == []


WORDS = {
    "compare": ["digits", "1", "CoOp"],
    "few_shot": ["BMIP", "digits", "1"],
    "zero_shot": ["digits"],
    "miniature": ["BMIP"],
    "test": ["tests/test_scripts.py"],
    "test_lowest": ["{tmp}/lowest"],
    "verify_setup": ["--data", "{tmp}"],
    **dict.fromkeys(("base2new_train", "base2new_test", "open_world", "xd_train", "xd_test", "domain_gen"), TRIPLE),
}
ALL_SCRIPTS = sorted(str(path.relative_to(FOLDER).with_suffix("")) for path in FOLDER.rglob("*.sh"))
ALL_SCRIPTS.remove("common")


@pytest.mark.parametrize("name", ALL_SCRIPTS)
def test_dry_run_may_stand_anywhere_and_nothing_runs(name, tmp_path):
    """With a Python that writes down how it is called: only sweep.py is, and hears of it."""
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    python.write_text(f'#!/bin/sh\necho "$@" >>"{tmp_path}/calls"\n')
    python.chmod(0o755)
    words = [word.replace("{tmp}", str(tmp_path)) for word in WORDS.get(name, ())]
    for arguments in (["--dry-run", *words], [*words, "--dry-run"]):
        done = run(f"{name}.sh", *arguments, VIRTUAL_ENV=str(tmp_path), OPTS="OPTIM.LR 0.1", SWEEP="-- OPTIM.LR 0.1")
        assert (done.returncode, done.stderr) == (0, "")
    calls = (tmp_path / "calls").read_text().splitlines() if (tmp_path / "calls").exists() else []
    assert all(call.startswith("sweep.py ") and "--dry-run" in call.split() for call in calls)
    assert len(calls) in ((2,) if done.stdout == "" else (0, 2))


def test_dry_run_commands_are_what_train_takes(tmp_path):
    options = {"OUTPUT": str(tmp_path / "with space"), "OPTS": "OPTIM.MAX_EPOCH 1 OPTIM.LR 0.1", "SHOTS": "4"}
    shown = run("compare.sh", "--dry-run", "--overwrite", "digits", "1 2", "CoOp", "MaPLe", **options)
    commands = training_commands(shown.stdout)
    assert [(args.trainer, args.seed) for args in commands] == [("CoOp", 1), ("MaPLe", 1), ("CoOp", 2), ("MaPLe", 2)]
    for args in commands:
        cfg = train.setup_cfg(args)
        assert args.overwrite
        assert (cfg.DATASET.ROOT, cfg.DATASET.NAME, cfg.DATASET.SUBSAMPLE_CLASSES) == ("assets", "Digits", "base")
        assert (cfg.DATASET.NUM_SHOTS, cfg.OPTIM.MAX_EPOCH, cfg.OPTIM.LR) == (4, 1, 0.1)
        assert tuple(cfg.TEST.CLASS_SPLITS) == ("base", "new", "all")
    table = shlex.split(shown.stdout.splitlines()[-1])
    assert table[1:6] == ["-m", "reporting", "table", "--protocol", "open_world"]
    assert table[6:] == [args.output_dir for args in commands]


@pytest.mark.parametrize("dataset", ["digits", "emoji_kinds"])
def test_bundled_data_go_with_the_bundled_model(dataset):
    (args,) = training_commands(run("compare.sh", "--dry-run", dataset, "1", "MaPLe").stdout)
    cfg = train.setup_cfg(args)
    assert (cfg.DATASET.ROOT, cfg.MODEL.BACKBONE.NAME) == ("assets", "bundled:tiny_clip")


def test_demo_runs_four_methods_and_all_of_them_when_asked():
    four = runs_of(run("demo.sh", "--dry-run").stdout)
    assert [trainer for trainer, _, seed in four if seed == 1] == ["ZeroshotCLIP", "CoOp", "MaPLe", "BMIP"] * 2
    assert {seed for _, _, seed in four} == {1, 2, 3}
    every = runs_of(run("demo.sh", "--all", "--dry-run", SEEDS="5").stdout)
    assert sorted(trainer for trainer, _, _ in every) == sorted([*{*TRAINERS} - {*TAUGHT, *OWN_CLASSES}] * 2)
    assert {run[1:] for run in every if run[0] == "BMIP"} == {("mini_ep10_batch32", 5)}
    assert all(setting.startswith("mini") for _, setting, _ in every)


def test_settings_by_argument_and_by_environment():
    variables = {"CFG_MaPLe": "vit_b16_c2_ep5_batch4_2ctx", "CFG_BMIP": "vit_b16_c2_ep10_batch4_2ctx_add"}
    methods = ["MaPLe", "BMIP=tiny_c2_ep10_batch4_2ctx", "BMIP", "CoOp"]
    shown = run("compare.sh", "--dry-run", "digits", "1", *methods, **variables)
    assert runs_of(shown.stdout) == [
        ("MaPLe", "vit_b16_c2_ep5_batch4_2ctx", 1),
        ("BMIP", "tiny_c2_ep10_batch4_2ctx", 1),
        ("BMIP", "vit_b16_c2_ep10_batch4_2ctx_add", 1),
        ("CoOp", "tiny_c4_ep50_batch32", 1),
    ]


WRONG = {
    "too few arguments": (["digits", "1"], {}, r"needs DATASET, SEED and at least one TRAINER"),
    "unknown data set": (["digit", "1", "CoOp"], {"DATA": "assets"}, r"data set 'digit'.*; there are: .*digits"),
    "unknown trainer": (["digits", "1", "BMPI"], {}, r"trainer 'BMPI'; there are: BMIP, .*ZeroshotCLIP2"),
    "trainer as a path": (["digits", "1", "../datasets"], {}, r"trainer '\.\./datasets'; there are: BMIP"),
    "no trainer's name": (["digits", "1", "=tiny"], {}, r"trainer ''; there are: BMIP"),
    "unknown setting": (["digits", "1", "CoOp=tiny"], {}, r"CoOp has no setting 'tiny'; there are: .*tiny_c4_ep50"),
    "unknown setting in the environment": (["digits", "1", "CoOp"], {"CFG_CoOp": "x"}, r"CoOp has no setting 'x'"),
    "one wrong among several": (["digits", "1", "CoOp", "MaPl"], {}, r"trainer 'MaPl'"),
    "seed": (["digits", "1 two", "CoOp"], {}, r"--seeds: .*'two'"),
    "no seed": (["digits", " ", "CoOp"], {}, r"no seed given"),
    "shots": (["digits", "1", "CoOp"], {"SHOTS": "none"}, r"--shots: .*'none'"),
    "no such folder of data": (["digits", "1", "CoOp"], {"DATA": "nowhere"}, r"--root nowhere is no folder"),
    "no folder of data": (["eurosat", "1", "CoOp"], {}, r"eurosat needs --root"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_use_is_told_before_anything_runs(case, tmp_path):
    arguments, variables, message = WRONG[case]
    refused = run("compare.sh", *arguments, OUTPUT=str(tmp_path / "output"), **variables)
    assert refused.returncode == 2
    lines = [line for line in refused.stderr.splitlines() if "error: " in line or line.startswith("compare.sh: ")]
    assert len(lines) == 1
    assert re.search(message, lines[0]), refused.stderr
    assert "start " not in refused.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [("OPTIM.LR None", r"OPTIM.LR is None"), ("OPTIM.LRR 1", r"unknown key OPTIM.LRR"), ("SEED 3", r"SEED is set")],
)
def test_options_that_no_run_takes_are_one_line_before_anything_runs(options, message, tmp_path):
    refused = run("compare.sh", "digits", "1", "CoOp", OUTPUT=str(tmp_path / "output"), OPTS=options)
    assert refused.returncode == 2
    assert re.search(message, refused.stderr.splitlines()[-1]), refused.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    """compare.sh on the digits, one epoch: what it printed, and the folder that it wrote."""
    output = tmp_path_factory.mktemp("compared")
    return run("compare.sh", "digits", "1", "MaPLe", "ZeroshotCLIP", OUTPUT=str(output), **QUICK), output


def test_compare_end_to_end(compared):
    first, output = compared
    assert first.returncode == 0, first.stderr
    assert "not comparable with ViT-B/16" in first.stdout
    rows = [line.split("|")[1].strip() for line in first.stdout.splitlines() if line.startswith("| ")]
    assert rows == ["Method", "ZeroshotCLIP", "MaPLe"]
    assert "OpenworldAUC" in first.stdout
    record = json.loads((output / MAPLE_RUN / "results.json").read_text(encoding="utf-8"))
    assert (record["trainer"], record["shots"], len(record["history"])) == ("MaPLe", 1, 1)
    assert set(record["metrics"]) == {"base", "new", "all"}


def test_compare_skips_finished_runs(compared):
    _, output = compared
    before = (output / MAPLE_RUN / "results.json").read_bytes()
    console = (output / MAPLE_RUN / "console.txt").read_bytes()
    again = run("compare.sh", "digits", "1", "MaPLe", OUTPUT=str(output), **QUICK)
    assert again.returncode == 0, again.stderr
    assert "start " not in again.stdout
    assert "| MaPLe" in again.stdout
    assert (output / MAPLE_RUN / "results.json").read_bytes() == before
    assert (output / MAPLE_RUN / "console.txt").read_bytes() == console
    assert b"Finish training" in console


def test_overwrite_redoes_a_finished_run(compared):
    _, output = compared
    before = json.loads((output / MAPLE_RUN / "results.json").read_text(encoding="utf-8"))
    again = run("compare.sh", "--overwrite", "digits", "1", "MaPLe", OUTPUT=str(output), **QUICK)
    assert again.returncode == 0, again.stderr
    after = json.loads((output / MAPLE_RUN / "results.json").read_text(encoding="utf-8"))
    assert after["finished_at"] != before["finished_at"]
    assert after["metrics"]["all"]["accuracy"] == before["metrics"]["all"]["accuracy"]


def test_a_run_that_cannot_be_is_named_with_its_reason(compared):
    _, output = compared
    before = (output / MAPLE_RUN / "results.json").read_bytes()
    failed = run("compare.sh", "digits", "1", "MaPLe", OUTPUT=str(output), SHOTS="1", OPTS="OPTIM.LR 0.1")
    assert failed.returncode == 1
    assert "finished run with other settings" in failed.stdout
    assert "OPTIM.LR was 0.0035, now 0.1" in failed.stdout
    assert "no run finished" in failed.stderr
    assert "| Method" not in failed.stdout
    assert (output / MAPLE_RUN / "results.json").read_bytes() == before


def test_a_failing_run_shows_its_last_lines_and_where_all_of_them_are(tmp_path):
    options = "OPTIM.MAX_EPOCH 1 DATASET.NUM_SHOTS 1 TRAINER.MAPLE.PROMPT_DEPTH 99"
    failed = run("compare.sh", "digits", "1", "MaPLe", OUTPUT=str(tmp_path), OPTS=options)
    assert failed.returncode == 1
    assert re.search(r"FAILED MaPLe .*exit status \d.*PROMPT_DEPTH", failed.stdout)
    assert f"all of it: {tmp_path / MAPLE_RUN.replace('shots1', 'shots16')}/console.txt" in failed.stdout
    assert "| Method" not in failed.stdout
