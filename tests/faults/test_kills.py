"""Runs, evaluations, sweeps and downloads that are killed at random moments end as if nothing had happened.

    pytest tests/faults                                             # one round of each, a minute
    pytest tests/faults --rounds 300 --fault-log faults.jsonl       # the long form

The moments are drawn by the number of the round: `--first-round N --rounds 1` repeats round N.
"""

import dataclasses
import hashlib
import io
import json
import random
import tarfile

import pytest

from datasets.sources import DatasetInfo, Mirror, Source
from tests.datasets.web_server import running_server
from tests.faults import children
from tests.faults.killing import FAULTS, SIGNALS, Victim, assert_sound, finished, leftovers, outcome, small_disk
from tests.trainers.small_runs import data_root

FAULTS_OF = {
    "test_a_run": FAULTS,
    "test_an_evaluation": tuple(SIGNALS),
    "test_a_sweep": (*SIGNALS, "file size"),
    "test_a_download": (*SIGNALS, "full disk"),
}
OPTIONS = [
    *("DATASET.NUM_SHOTS", "2", "DATASET.SUBSAMPLE_CLASSES", "base", "DATALOADER.TRAIN_X.BATCH_SIZE", "2"),
    *("OPTIM.MAX_EPOCH", "3", "TEST.FINAL_MODEL", "best_val", "TRAIN.PATIENCE", "2", "TRAIN.PRINT_FREQ", "1"),
    *("TEST.CLASS_SPLITS", "('base', 'new')"),
]


def arguments(output, *options, flags=()):
    return [
        *("--root", data_root(), "--seed", "1", "--trainer", "CoOp", "--device", "cpu"),
        *("--config-file", "configs/trainers/CoOp/tiny_c4_ep50_batch32.yaml"),
        *("--dataset-config-file", "configs/datasets/digits.yaml", "--output-dir", str(output)),
        *flags,
        *OPTIONS,
        *options,
    ]


@pytest.fixture(scope="session")
def fault_log(request):
    """Writes what was done and what came of it, a line per fault, for the counts of docs/reliability.md."""
    path = request.config.getoption("--fault-log")

    def tell(victim):
        def write(**facts):
            if path:
                with open(path, "a", encoding="utf-8") as file:
                    file.write(json.dumps({"victim": victim, **facts}) + "\n")

        return write

    return tell


@pytest.fixture(scope="module")
def whole(tmp_path_factory, fault_log):
    """An uninterrupted run: its folder and the seconds it took."""
    folder = tmp_path_factory.mktemp("whole")
    victim = Victim(children.run, (arguments(folder / "run"),), folder / "consoles", fault_log("run"))
    return folder / "run", victim.finish()


@pytest.fixture(scope="module")
def strikes(request):
    """Faults in a row, before a victim may end."""
    return 1 if request.config.getoption("--rounds") == 1 else 2


def test_a_run(fault, fault_round, whole, tmp_path, fault_log, strikes):
    rng = random.Random(f"run {fault} {fault_round}")
    folder = tmp_path / "disk" / "run"
    log = fault_log("run")
    if fault == "full disk":
        with small_disk(tmp_path / "disk", rng.randrange(8, 120)) as make_room:
            strike_and_finish(fault, rng, folder, whole, strikes, log, make_room)
    else:
        strike_and_finish(fault, rng, folder, whole, strikes, log)


def strike_and_finish(fault, rng, folder, whole, strikes, log, make_room=lambda: None):
    reference, seconds = whole
    for _ in range(strikes):
        workers = ("DATALOADER.NUM_WORKERS", str(rng.choice([0, 0, 0, 2])))
        victim = Victim(children.run, (arguments(folder, *workers),), folder.parents[1] / "consoles", log)
        victim.strike(fault, rng, seconds)
        assert_sound(folder)
    make_room()
    before = finished(folder)
    Victim(children.run, (arguments(folder),), folder.parents[1] / "last", log).finish()
    assert outcome(folder) == outcome(reference)
    assert before in ({}, finished(folder)), "a finished result was lost"
    if not before:
        assert leftovers(folder) == []


def test_an_evaluation(fault, fault_round, whole, tmp_path, fault_log, strikes):
    trained, seconds = whole
    rng = random.Random(f"evaluation {fault} {fault_round}")
    flags = ("--eval-only", "--model-dir", str(trained))
    log, folder = fault_log("evaluation"), tmp_path / "run"
    victim = Victim(children.run, (arguments(folder, flags=flags),), tmp_path / "consoles", log)
    for _ in range(strikes):
        victim.strike(fault, rng, seconds * 0.7)
        assert_sound(folder)
    before = finished(folder)
    victim.finish()
    name = "results.json"
    assert outcome(folder)[name][0] == outcome(trained)[name][0]
    assert before in ({}, finished(folder))


@pytest.fixture(scope="module")
def whole_sweep(tmp_path_factory, fault_log):
    folder = tmp_path_factory.mktemp("sweep")
    sweep = Victim(children.run_sweep, (sweep_arguments(folder / "output"),), folder / "consoles", fault_log("sweep"))
    return folder / "output", sweep.finish()


def sweep_arguments(output):
    options = [*OPTIONS[4:], "OPTIM.MAX_EPOCH", "2"]
    return [
        *("--protocol", "open_world", "--trainers", "CoOp=tiny_c4_ep50_batch32", "--datasets", "digits"),
        *("--seeds", "1", "2", "--shots", "2", "--root", data_root(), "--output", str(output)),
        *("--launcher", "inline", "--gpus", "--retry", "--", *options),
    ]


def test_a_sweep(fault, fault_round, whole_sweep, tmp_path, fault_log, strikes):
    reference, seconds = whole_sweep
    rng = random.Random(f"sweep {fault} {fault_round}")
    folder = tmp_path / "output"
    victim = Victim(children.run_sweep, (sweep_arguments(folder),), tmp_path / "consoles", fault_log("sweep"))
    for _ in range(strikes):
        before = finished(folder)
        victim.strike(fault, rng, seconds)
        assert_sound(folder)
        assert before.items() <= finished(folder).items(), "a finished result was lost"
    victim.finish()
    assert before.items() <= finished(folder).items()
    assert outcome(folder) == outcome(reference)
    assert leftovers(folder) == []


@pytest.fixture(scope="module")
def shop():
    """A data set of 600 images on a server: what it holds, and how it is described."""
    rng = random.Random(1)
    images = {f"pic/{label}/{number}.jpg": rng.randbytes(3000) for label in "ab" for number in range(300)}
    split = {"train": [["a/0.jpg", 0, "a"], ["b/0.jpg", 1, "b"]], "val": [], "test": [["a/1.jpg", 0, "a"]]}
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as file:
        for name, content in images.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            file.addfile(entry, io.BytesIO(content))
    files = {"images.tgz": buffer.getvalue(), "split.json": json.dumps(split).encode()}
    with running_server() as server:
        mirrors = {
            name: Mirror(server.add(f"/{name}", content), len(content), hashlib.sha256(content).hexdigest())
            for name, content in files.items()
        }
        sources = (
            Source("images.tgz", (mirrors["images.tgz"],), ("pic",)),
            Source("split.json", (mirrors["split.json"],), ("split.json",), False, True),
        )
        info = DatasetInfo("Toys", "toys", 2, 3, (2, 0, 1), "none", "", (("pic", 600),), "split.json", sources)
        yield info, images | {"split.json": files["split.json"]}


def test_a_download(fault, fault_round, shop, tmp_path, fault_log):
    info, expected = shop
    rng = random.Random(f"download {fault} {fault_round}")
    root, log = tmp_path / "data", fault_log("download")
    victim = Victim(children.run_download, (dataclasses.replace(info), str(root)), tmp_path / "consoles", log)
    if fault == "full disk":
        with small_disk(root, rng.randrange(500, 3500)) as make_room:
            victim.strike(fault, rng, 1.0)
            make_room()
            victim.finish()
            assert there(root / "toys") == expected
        return
    for _ in range(3):
        victim.strike(fault, rng, 0.6)
        if (root / "toys" / "pic").exists():
            assert len(list((root / "toys" / "pic").rglob("*.jpg"))) == 600, "a part passes for the whole"
    victim.finish()
    assert there(root / "toys") == expected


def there(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
