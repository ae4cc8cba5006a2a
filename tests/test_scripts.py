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
from sweeping.protocols import PROTOCOLS
from sweeping.settings import published_setting
from tests.ours import TRAINERS

REPOSITORY = Path(__file__).resolve().parent.parent
SCRIPTS = {"setup.sh": [], "test.sh": [], "test_lowest.sh": [], "demo.sh": [], "compare.sh": ["digits", "1", "CoOp"]}
QUICK = {"SHOTS": "1", "OPTS": "OPTIM.MAX_EPOCH 1"}
MAPLE_RUN = "MaPLe/tiny_c2_ep10_batch4_2ctx/digits/shots1/seed1"
DEFAULTS = "source scripts/settings.sh; for t in $(every_trainer); do echo $t $(default_setting $t {dataset}); done"


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
        assert "unknown option --no-such-option" in refused.stderr
        assert "Usage: " in refused.stderr


@pytest.mark.parametrize("script", SCRIPTS)
def test_dry_run_prints_commands_and_does_nothing(script, tmp_path):
    shown = run(script, "--dry-run", *SCRIPTS[script], OUTPUT=str(tmp_path / "output"))
    assert shown.returncode == 0, shown.stderr
    for line in shown.stdout.splitlines():
        assert shlex.split(line)[0] in ("bash", "uv") or "python" in shlex.split(line)[0], line
    assert list(tmp_path.iterdir()) == []


def test_dry_run_commands_are_what_train_takes(tmp_path):
    options = {"OUTPUT": str(tmp_path / "with space"), "OPTS": "OPTIM.MAX_EPOCH 1 SEED 7", "SHOTS": "4"}
    shown = run("compare.sh", "--dry-run", "--overwrite", "digits", "1 2", "CoOp", "MaPLe", **options)
    commands = training_commands(shown.stdout)
    assert [(args.trainer, args.seed) for args in commands] == [("CoOp", 1), ("MaPLe", 1), ("CoOp", 2), ("MaPLe", 2)]
    for args in commands:
        cfg = train.setup_cfg(args)
        assert args.overwrite
        assert (cfg.DATASET.ROOT, cfg.DATASET.NAME, cfg.DATASET.SUBSAMPLE_CLASSES) == ("assets", "Digits", "base")
        assert (cfg.DATASET.NUM_SHOTS, cfg.OPTIM.MAX_EPOCH, cfg.SEED) == (4, 1, 7)
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
    assert [trainer for trainer, _, seed in four if seed == 1] == ["ZeroshotCLIP", "CoOp", "MaPLe", "BMIP"]
    assert {seed for _, _, seed in four} == {1, 2, 3}
    every = runs_of(run("demo.sh", "--all", "--dry-run", SEEDS="5").stdout)
    assert sorted(trainer for trainer, _, _ in every) == sorted(TRAINERS)
    assert {run[1:] for run in every if run[0] == "BMIP"} == {("tiny_c2_ep10_batch4_2ctx", 5)}
    assert all(setting.startswith("tiny") for _, setting, _ in every)


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


@pytest.mark.parametrize("dataset", ["digits", "eurosat", "imagenet"])
def test_defaults_are_those_of_the_sweeps(dataset):
    """One answer to "which setting?", whichever way a method is run."""
    shown = subprocess.run(["bash", "-c", DEFAULTS.format(dataset=dataset)], capture_output=True, text=True, check=True)
    defaults = dict(line.split() for line in shown.stdout.splitlines())
    assert sorted(defaults) == sorted(TRAINERS)
    for trainer, setting in defaults.items():
        assert Path(f"configs/trainers/{trainer}/{setting}.yaml").is_file()
        assert published_setting(trainer, PROTOCOLS["open_world"], dataset, 16).file == setting


WRONG = {
    "too few arguments": (["digits", "1"], {}, r"needs DATASET, SEED and at least one TRAINER"),
    "unknown data set": (["digit", "1", "CoOp"], {"DATA": "assets"}, r"data set 'digit'; choose from .*digits"),
    "unknown trainer": (["digits", "1", "BMPI"], {}, r"trainer 'BMPI'; choose from BMIP, .*ZeroshotCLIP2"),
    "trainer as a path": (["digits", "1", "../trainers"], {}, r"trainer '\.\./trainers'; choose from BMIP"),
    "no trainer's name": (["digits", "1", "=tiny"], {}, r"trainer ''; choose from BMIP"),
    "unknown setting": (["digits", "1", "CoOp=tiny"], {}, r"CoOp has no setting 'tiny'; choose from .*tiny_c4_ep50"),
    "unknown setting in the environment": (["digits", "1", "CoOp"], {"CFG_CoOp": "x"}, r"CoOp has no setting 'x'"),
    "one wrong among several": (["digits", "1", "CoOp", "MaPl"], {}, r"trainer 'MaPl'"),
    "seed": (["digits", "1 two", "CoOp"], {}, r"seed 'two' is not a whole number"),
    "no seed": (["digits", " ", "CoOp"], {}, r"no seed given"),
    "shots": (["digits", "1", "CoOp"], {"SHOTS": "none"}, r"SHOTS is 'none'"),
    "no such folder of data": (["digits", "1", "CoOp"], {"DATA": "nowhere"}, r"DATA is 'nowhere', which is no folder"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_use_is_one_line_before_anything_runs(case, tmp_path):
    arguments, variables, message = WRONG[case]
    refused = run("compare.sh", *arguments, OUTPUT=str(tmp_path / "output"), **variables)
    assert refused.returncode == 2
    assert re.match(f"compare.sh: .*{message}", refused.stderr.splitlines()[0]), refused.stderr
    assert "==" not in refused.stdout
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
    again = run("compare.sh", "digits", "1", "MaPLe", OUTPUT=str(output), **QUICK)
    assert again.returncode == 0, again.stderr
    assert (output / MAPLE_RUN / "results.json").read_bytes() == before
    console = (output / MAPLE_RUN / "console.txt").read_text(encoding="utf-8")
    assert "Finished already" in console
    assert "Finish training" in console  # the first output is kept


def test_a_failing_run_stops_the_script_and_shows_its_last_lines(compared):
    _, output = compared
    before = (output / MAPLE_RUN / "results.json").read_bytes()
    failed = run("compare.sh", "digits", "1", "MaPLe", OUTPUT=str(output), SHOTS="1", OPTS="OPTIM.LR 0.1")
    assert failed.returncode == 1
    assert "OPTIM.LR was 0.0035, now 0.1" in failed.stderr
    assert "compare.sh: MaPLe, seed 1 failed; its whole output is in" in failed.stderr
    assert "| Method" not in failed.stdout
    assert (output / MAPLE_RUN / "results.json").read_bytes() == before
