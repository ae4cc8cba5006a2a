"""The scripts of every protocol and table: what they would run, and small runs of all tables on the bundled data."""

import os
import re
import shlex
import subprocess
import sys

import pytest

SINGLE = ("base2new_train", "base2new_test", "open_world", "xd_train", "xd_test", "domain_gen")
TABLES = (
    *("open_world", "calibration", "cross_dataset", "domain_generalization", "combinations", "few_shot_curve", "cost"),
    *("ablation_aggregation", "ablation_depth", "ablation_length", "ablation_sharing"),
)
TINY = "tiny_c2_ep10_batch4_2ctx"
SMALL = {
    "SEEDS": "1",
    "OPTS": "OPTIM.MAX_EPOCH 1 DATASET.NUM_SHOTS 1 TEST.FINAL_MODEL last_step TRAIN.PATIENCE 0",
    "SWEEP": "--launcher inline",
}


@pytest.fixture
def script(request, tmp_path):
    """Run a script in another folder than its own."""
    root = request.config.rootpath
    environment = {name: value for name, value in os.environ.items() if name not in ("DATA", "SHOTS", "TRAINER")}
    environment |= {"VIRTUAL_ENV": sys.prefix, "OMP_NUM_THREADS": "1", "OUTPUT": str(tmp_path / "output")}

    def run(name, *arguments, **variables):
        command = ["bash", str(root / "scripts" / f"{name}.sh"), *arguments]
        return subprocess.run(
            command, cwd=tmp_path, env=environment | variables, capture_output=True, text=True, check=False
        )

    return run


def dry(done):
    """The train.py commands that a dry run printed."""
    assert done.returncode == 0, done.stderr
    return [shlex.split(line) for line in done.stdout.splitlines() if "train.py" in line]


def option(command, key):
    return command[command.index(key) + 1]


@pytest.mark.parametrize(
    "name", [*SINGLE, "few_shot", "zero_shot", "verify_setup", *(f"tables/{table}" for table in TABLES)]
)
def test_help_says_how_to_use_it(name, script):
    done = script(name, "--help")
    assert done.returncode == 0
    assert f"Usage: scripts/{name}.sh" in done.stdout
    assert "shellcheck" not in done.stdout


@pytest.mark.parametrize("name", SINGLE)
def test_positional_arguments_are_trainer_dataset_seed_and_setting(name, script, tmp_path):
    done = script(name, "MaPLe", "digits", "2", TINY, "--dry-run", SOURCE="emoji_kinds", OPTS="OPTIM.LR 0.1")
    (command,) = dry(done)
    assert command[:2] == ["python", "train.py"]
    assert option(command, "--trainer") == "MaPLe"
    assert option(command, "--seed") == "2"
    assert option(command, "--config-file") == f"configs/trainers/MaPLe/{TINY}.yaml"
    assert option(command, "--dataset-config-file") == "configs/datasets/digits.yaml"
    assert command[-2:] == ["OPTIM.LR", "0.1"]
    assert ("--eval-only" in command) == (name in ("base2new_test", "xd_test", "domain_gen"))
    assert not (tmp_path / "output").exists()


def test_few_shot_runs_every_seed_and_zero_shot_one(script):
    commands = dry(script("few_shot", "CoOp", "digits", "4", "--dry-run", SEEDS="1 2"))
    assert [(option(c, "--seed"), option(c, "DATASET.NUM_SHOTS")) for c in commands] == [("1", "4"), ("2", "4")]
    (command,) = dry(script("zero_shot", "digits", "--dry-run"))
    assert (option(command, "--trainer"), option(command, "TEST.PROTOCOL")) == ("ZeroshotCLIP", "zero_shot")


def test_verify_setup_checks_tests_and_compares(script, tmp_path):
    done = script("verify_setup", "--dry-run", "--data", str(tmp_path), OPTS="DATALOADER.NUM_WORKERS 0")
    check, sweep, compare = (shlex.split(line)[1:] for line in done.stdout.splitlines())
    assert check == ["-m", "datasets", "check", "all", "--root", str(tmp_path)]
    assert sweep[-3:] == ["--", "DATALOADER.NUM_WORKERS", "0"]
    assert compare == ["-m", "reporting", "verify", option(sweep, "--output")]
    assert script("verify_setup").returncode == 2


def test_the_published_data_sets_are_the_tables(script):
    eleven = dry(script("tables/open_world", "--trainers", "BMIP", "--seeds", "1", "--dry-run", DATA="data"))
    assert len({option(command, "--dataset-config-file") for command in eleven}) == 11
    assert {option(command, "--root") for command in eleven} == {f"{'data'}"}
    across = dry(script("tables/cross_dataset", "--trainers", "BMIP", "--seeds", "1", "--dry-run", DATA="data"))
    assert ["--eval-only" in command for command in across] == [False] + [True] * 10
    domains = dry(
        script("tables/domain_generalization", "--trainers", "BMIP", "--seeds", "1", "--dry-run", DATA="data")
    )
    assert domains[0] == across[0]
    assert ["--eval-only" in command for command in domains] == [False] + [True] * 5


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("open_world", ("BMIP", "digits"), "takes TRAINER DATASET SEED CFG"),
        ("open_world", ("BMIP", "digits", "1", TINY, "more"), "takes TRAINER DATASET SEED CFG"),
        ("open_world", ("BMIP", "digits", "1", "--fast"), "unknown option --fast"),
        ("open_world", ("BMPI", "digits", "1"), "unknown|no settings .* 'BMPI'"),
        ("open_world", ("BMIP", "digits", "one"), "invalid int value: 'one'"),
        ("xd_test", ("BMIP", "emoji_kinds", "1"), "nothing to evaluate"),
        ("tables/open_world", ("--method", "BMIP"), "unrecognized arguments: --method"),
        ("tables/open_world", ("BMIP",), "unrecognized arguments: BMIP"),
        ("tables/open_world", ("--trainers", "BMIP", "--datasets", "eurosat"), "eurosat needs --root"),
        ("tables/ablation_depth", ("--trainers", "CoOp", "--datasets", "digits"), "CoOp has no single key"),
        (
            "tables/ablation_depth",
            ("--trainers", "CoOp", "--vary", "OPTIM.LR", "1", "2"),
            "single key for PROMPT_DEPTH",
        ),
        ("tables/cost", ("--trainers", "BMPI"), "'BMPI'"),
        ("verify_setup", ("--data", "nowhere"), "error: no published data set is under nowhere"),
    ],
)
def test_wrong_use_is_refused(name, arguments, message, script, tmp_path):
    done = script(name, *arguments, SOURCE="emoji_kinds")
    assert done.returncode == 2
    assert re.search(message, done.stderr), done.stderr
    assert len(re.findall(r"error: |\.sh: ", done.stderr)) == 1
    assert not (tmp_path / "output").exists()


def test_the_two_steps_of_base2new(script, tmp_path):
    small = {"OPTS": SMALL["OPTS"]}
    early = script("base2new_test", "MaPLe", "digits", "1", **small)
    assert early.returncode == 1
    assert "which is not finished" in early.stdout
    for name in ("base2new_train", "base2new_test"):
        done = script(name, "MaPLe", "digits", "1", **small)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "=> result" in done.stdout  # on the terminal, as with CoOp's scripts
    log = tmp_path / "output" / "base2new" / "test_new" / "digits" / "shots_16" / "MaPLe" / TINY / "seed1" / "log.txt"
    assert log.read_text().count("* accuracy:") == 2


def table_of(done):
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "variables", "rows"),
    [
        ("ablation_aggregation", {"AGGREGATORS": "add"}, ["aggregator_add"]),
        ("ablation_depth", {"DEPTHS": "1"}, ["prompt_depth_1"]),
        ("ablation_length", {"LENGTHS": "6"}, ["n_ctx_6"]),
        (
            "ablation_sharing",
            {"SHARE_TEXT": "True", "SHARE_VISUAL": "False"},
            ["share_parameter_text_True_share_parameter_visual_False"],
        ),
    ],
)
def test_ablations_run_every_value_as_a_setting_of_its_own(name, variables, rows, script):
    text = table_of(script(f"tables/{name}", **SMALL, **variables, DATASETS="digits"))
    assert text.count("finished BMIP") == len(rows)
    for row in rows:
        assert f"{TINY}_{row} digits" in text
    assert "OpenworldAUC" in text


@pytest.mark.slow
def test_open_world_and_combinations_share_runs(script):
    text = table_of(script("tables/open_world", "--trainers", "MaPLe", "BMIP", **SMALL, DATASETS="bundled"))
    assert "OpenworldAUC" in text
    assert "Digits" in text
    text = table_of(script("tables/calibration", "--trainers", "MaPLe", "BMIP", **SMALL, DATASETS="bundled"))
    assert "start " not in text
    assert re.search(r"^\| MaPLe +\| 1 \(n=1\) +\|( +\d+\.\d\d \|){9}$", text, flags=re.MULTILINE)
    text = table_of(script("tables/combinations", "--trainers", "MaPLe", "MaPLe_BMIP", **SMALL, DATASETS="digits"))
    assert text.count("start ") == 1
    assert "MaPLe_BMIP" in text


@pytest.mark.slow
def test_few_shot_curve(script):
    variables = SMALL | {"OPTS": "OPTIM.MAX_EPOCH 1 TEST.FINAL_MODEL last_step TRAIN.PATIENCE 0"}
    text = table_of(script("tables/few_shot_curve", "--trainers", "MaPLe", **variables, SHOTS="1", DATASETS="bundled"))
    assert "Columns: shots per class" in text


@pytest.mark.slow
def test_transfer_tables_share_the_training_run(script):
    text = table_of(script("tables/cross_dataset", "--trainers", "MaPLe", **SMALL, DATASETS="bundled"))
    assert "EmojiKinds (source)" in text
    assert "Digits" in text
    text = table_of(script("tables/domain_generalization", "--trainers", "MaPLe", **SMALL, DATASETS="bundled"))
    assert "EmojiKinds (source)" in text
    assert "EmojiKindsFluent" in text
    assert not re.search(r"start .*emoji_kinds 16 shots seed 1\n.*Finish training", text)
    assert text.count("start ") == 4  # four tests of the weights that are there


@pytest.mark.slow
def test_cost_counts_parameters_and_operations(script):
    text = table_of(script("tables/cost", "--trainers", "ZeroshotCLIP", "BMIP", DATASETS="bundled", MEASURES="train"))
    assert re.search(r"\| BMIP +\| 3 +\| 4 ", text)
    assert re.search(r"\| ZeroshotCLIP +\| tiny +\| 0 +\| 0 ", text)
    assert re.search(rf"\| BMIP +\| {TINY} +\| [\d,]+ ", text)
    assert "GFLOPs" in text
