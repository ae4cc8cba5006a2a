"""Many processes at once on one data root, one output folder and one folder of image features."""

import shutil
from pathlib import Path

import pytest

from evaluation.feature_store import FeatureStore
from tests.faults import children
from tests.faults.children import REPOSITORY
from tests.faults.killing import SECONDS, Victim, assert_sound, leftovers, outcome
from tests.faults.test_kills import arguments
from train import BUSY


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
        store = FeatureStore(path.parent.name, path.parent.parent, 2**20)
        assert store._read(path)
