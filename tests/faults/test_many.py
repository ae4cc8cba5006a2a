"""Many processes at once on one data root, one output folder and one folder of image features."""

import itertools
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from results.features import read_features
from results.schema import read_results
from tests.faults import children
from tests.faults.children import REPOSITORY
from tests.faults.killing import SECONDS, Victim, assert_sound, leftovers, outcome
from tests.faults.test_kills import arguments
from train import BUSY, STOPPED


def data_of_ones_own(folder):
    """Four classes of ten images each, not split yet: the first run draws a split and saves it beside them."""
    for label in sorted(Path(REPOSITORY, "assets/digits/images").iterdir())[:4]:
        (folder / label.name).mkdir(parents=True)
        for path in sorted(label.iterdir())[:10]:
            shutil.copy2(path, folder / label.name)  # with its time, as the features' folder leaves out fresh images
    return folder


def run_on(data, output, *options):
    command = arguments(output, "OPTIM.MAX_EPOCH", "1", *options)
    command[command.index("--root") + 1] = str(data)
    command[command.index("--dataset-config-file") + 1] = "configs/datasets/folder.yaml"
    return command


@pytest.mark.parametrize(
    ("disturb", "status", "said"),
    [
        (children.make_a_mistake, 1, "RuntimeError: a mistake"),
        (children.kill_a_worker, 2, "the same command goes on after the last finished epoch"),
    ],
)
def test_a_run_that_an_error_ends_does_not_wait_for_its_loaders_workers(disturb, status, said, tmp_path):
    """Found by a limit on memory: the workers outlive the one SIGTERM that a process sends them at its exit."""
    command = arguments(tmp_path / "run", "DATALOADER.NUM_WORKERS", "2")
    victim = Victim(children.run_disturbed, (command, disturb), tmp_path / "consoles")
    process = victim.start()
    process.join(60)
    assert process.exitcode == status, victim.printed()
    assert said in victim.printed().splitlines()[-1]
    Victim(children.run, (command,), tmp_path / "last").finish()
    assert leftovers(tmp_path / "run") == []


def test_runs_at_once(tmp_path):
    shared, apart = data_of_ones_own(tmp_path / "shared"), data_of_ones_own(tmp_path / "apart")
    features = ("FEATURES.FOLDER", str(tmp_path / "features"))
    victims = [
        Victim(children.run, (run_on(data, tmp_path / folder, *options),), tmp_path / f"consoles{number}")
        for number, (data, folder, options) in enumerate(
            [(shared, "same", features), (shared, "same", features), (shared, "other", features), (apart, "alone", ())]
        )
    ]
    processes = [victim.start() for victim in victims]
    for process in processes:
        process.join(SECONDS)
    first, second, *others = (process.exitcode for process in processes)
    said = [victim.printed() for victim in victims]
    assert others == [0, 0], said
    assert sorted([first, second]) in ([0, 0], [0, BUSY]), said
    if BUSY in (first, second):
        assert "in use by process" in said[[first, second].index(BUSY)]
    else:
        assert sum("Finished already" in text for text in said) == 1
    for folder in ("same", "other"):
        assert_sound(tmp_path / folder)
        assert leftovers(tmp_path / folder) == []
        assert outcome(tmp_path / folder) == outcome(tmp_path / "alone")
    assert (shared / "split_own_seed0.json").read_bytes() == (apart / "split_own_seed0.json").read_bytes()
    assert leftovers(shared) == leftovers(tmp_path / "features") == []
    stored = list((tmp_path / "features").rglob("*.npz"))
    assert stored
    for path in stored:
        assert read_features(path, path.parent.name)


def test_six_that_start_at_once_in_one_folder(tmp_path):
    """One runs; each of the others is told so, or finds it finished."""
    folder = tmp_path / "run"
    command = arguments(folder, "OPTIM.MAX_EPOCH", "2")
    victims = [Victim(children.run, (command,), tmp_path / f"consoles{number}") for number in range(6)]
    processes = [victim.start() for victim in victims]
    for process in processes:
        process.join(SECONDS)
    said = [victim.printed() for victim in victims]
    assert sorted(process.exitcode for process in processes) == [0] + [BUSY] * 5, said
    assert sum("in use by process" in text for text in said) == 5
    assert_sound(folder)
    assert leftovers(folder) == []
    assert len(list(folder.glob("log.txt*"))) == 1


def several_seeds(folder):
    command = arguments(folder / "seed{seed}")
    position = command.index("--seed")
    return [*command[:position], "--seeds", "1", "2", *command[position + 2 :]]


def test_several_seeds_that_were_killed_go_on_to_the_same_bits(tmp_path):
    """In the first seed, and in the second, when the first is finished."""
    whole = tmp_path / "whole"
    Victim(children.run, (several_seeds(whole),), tmp_path / "consoles").finish()
    for seed in (1, 2):
        folder = tmp_path / f"killed{seed}"
        victim = Victim(children.run_killed_at_an_epochs_end, (several_seeds(folder), seed, 2), tmp_path / "killed")
        process = victim.start()
        process.join(SECONDS)
        assert process.exitcode == 9, victim.printed()
        assert [(folder / f"seed{each}" / "results.json").exists() for each in (1, 2)] == [seed == 2, False]
        Victim(children.run, (several_seeds(folder),), tmp_path / "last").finish()
        for each in (1, 2):
            record = read_results(folder / f"seed{each}" / "results.json")
            assert record["environment"]["determinism"]["bit_identical"]
        assert outcome(folder) == outcome(whole)


@pytest.mark.parametrize("marks", ["** Config **", "epoch [1/", "epoch [2/"])
def test_a_storm_of_signals_stops_a_run_as_one_does(tmp_path, marks):
    """Later signals change nothing, whether they come while it saves its state, says so, or ends."""
    command = [*arguments(tmp_path / "run", "DATALOADER.NUM_WORKERS", "2"), "OPTIM.MAX_EPOCH", "300"]
    rng, sent = random.Random(marks), []
    with subprocess.Popen(
        [sys.executable, "train.py", *command],
        cwd=REPOSITORY,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert any(marks in line for line in process.stdout)
        for number in itertools.cycle((signal.SIGTERM, signal.SIGUSR1)):
            if process.poll() is not None:
                break
            process.send_signal(number if len(sent) < 2 else rng.choice((signal.SIGTERM, signal.SIGUSR1)))
            sent.append(number)
            time.sleep(rng.choice((0, 0, 0.001)))
        error = process.stderr.read()
    assert process.returncode == STOPPED, error
    assert len(sent) > 10
    assert error.count("nothing is lost, the same command goes on") == 1
    assert "Traceback" not in error
    assert leftovers(tmp_path / "run") in ([], [str(tmp_path / "run" / "resume.pth.tar")])
