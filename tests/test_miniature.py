"""The benchmark in miniature: every method has a setting, chosen alike; its script runs end to end."""

import json
import os
import shlex
import statistics
import subprocess
from pathlib import Path

import pytest

import sweep
import train
from sweeping.plan import FITTED, MINI, OWN_CLASSES, PROTOCOLS, SETTINGS, TAUGHT, UNTRAINED, bundled_plan, setting_file
from tests.ours import TRAINERS
from tools import mini_ranks, mini_tune
from tools.mini_tune import FACTORS, RECORD, SEEDS, mini_setting, published_rate, rates, write_choice

TRAINED = [name for name in TRAINERS if name not in (*UNTRAINED, *FITTED, *TAUGHT)]


@pytest.fixture(autouse=True)
def repository_folder(monkeypatch, request):
    monkeypatch.chdir(request.config.rootpath)


def configuration(trainer):
    path = setting_file(trainer, mini_setting(trainer))
    return train.setup_cfg(train.build_parser().parse_args(["--config-file", str(path)]))


@pytest.mark.parametrize("trainer", TRAINERS)
def test_every_method_has_a_setting_like_the_others(trainer):
    cfg = configuration(trainer)
    assert cfg.MODEL.BACKBONE.NAME == "bundled:mini_clip"
    assert tuple(cfg.INPUT.SIZE) == (48, 48)
    if trainer not in UNTRAINED:
        assert cfg.DATALOADER.TRAIN_X.BATCH_SIZE == 32
        epochs = 40 if trainer == "ProDA" else 10  # its file says why
        assert epochs == cfg.OPTIM.MAX_EPOCH


@pytest.mark.parametrize("trainer", TRAINED)
def test_the_learning_rate_is_the_best_of_as_many_trials_as_all_had(trainer):
    record = json.loads(RECORD.read_text())
    assert tuple(record["seeds"]) == SEEDS
    tuned = record["methods"][trainer]
    assert [trial["rate"] for trial in tuned["trials"]] == rates(trainer)
    assert len(tuned["trials"]) == len(FACTORS)
    finished = {trial["rate"]: statistics.mean(trial["H"]) for trial in tuned["trials"] if "H" in trial}
    assert tuned["chosen"] == max(finished, key=finished.get) == configuration(trainer).OPTIM.LR
    assert rates(trainer)[FACTORS.index(1)] == published_rate(trainer)


def test_a_choice_changes_the_rate_alone(tmp_path, monkeypatch):
    before = setting_file("PromptSRC", mini_setting("PromptSRC")).read_text()
    monkeypatch.setattr(mini_tune, "RECORD", tmp_path / "record.json")
    copy = tmp_path / "mini.yaml"
    copy.write_text(before)
    monkeypatch.setattr(mini_tune, "setting_file", lambda trainer, setting: copy)
    trials = [{"rate": 0.5, "base": [50.0], "new": [60.0], "H": [54.5]}, {"rate": 0.7}]
    write_choice("PromptSRC", trials)
    assert copy.read_text() != before
    changed = set(copy.read_text().splitlines()) ^ set(before.splitlines())
    assert all(line.startswith("  LR: ") for line in changed)
    assert json.loads((tmp_path / "record.json").read_text())["methods"] == {
        "PromptSRC": {"chosen": 0.5, "trials": trials}
    }


def test_it_stands_in_for_every_protocol():
    assert bundled_plan(PROTOCOLS["open_world"], "", mini=True) == (MINI, "")
    targets = {name for name in MINI if name != "mini_objects"}
    across, source = bundled_plan(PROTOCOLS["cross_dataset"], "", mini=True)
    assert (source, across[0], set(across[1:])) == ("mini_objects", "mini_objects", targets)
    domains, _ = bundled_plan(PROTOCOLS["domain_generalization"], "", mini=True)
    assert [name.removeprefix("mini_objects_") for name in domains[1:]] == ["edges", "pixel", "plain", "textured"]


def script(*arguments, **variables):
    command = ["bash", "scripts/miniature.sh", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **variables}, timeout=600)


def test_the_script_names_its_sweeps(tmp_path):
    shown = script("--dry-run", "CoOp", "BMIP", OUTPUT=str(tmp_path / "runs"), SEEDS="1 2")
    assert shown.returncode == 0, shown.stderr
    sweeps = [shlex.split(line) for line in shown.stdout.splitlines() if " sweep.py " in line]
    tables = [words[words.index("--table") + 1] for words in sweeps]
    assert tables[:4] == ["open_world", "cross_dataset", "domain_generalization", "few_shot_curve"]
    for words in sweeps:
        plans = sweep.plans_of(sweep.parse(words[2:]))
        assert plans[0].seeds == (1, 2)
        assert all(name.startswith("mini_") for plan in plans for name in plan.datasets)
    quick = script("--dry-run", "--quick", "all").stdout
    (words,) = [shlex.split(line) for line in quick.splitlines() if " sweep.py " in line]
    (plan,) = sweep.plans_of(sweep.parse(words[2:]))
    assert (plan.shots, plan.trainers, len(plan.datasets)) == (
        (4,),
        tuple(name for name in SETTINGS if name not in (*TAUGHT, *OWN_CLASSES)),
        3,
    )
    assert "unknown option --quik" in script("--quik").stderr


def test_ranks_need_runs_of_the_miniature(tmp_path, capsys):
    assert mini_ranks.main([str(tmp_path)]) == 2
    assert "no results.json" in capsys.readouterr().err


def test_the_page_has_the_trials_on_record(capsys):
    assert mini_tune.main(["--list"]) == 0
    assert capsys.readouterr().out in Path("docs/miniature.md").read_text()
