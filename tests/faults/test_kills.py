"""Runs, evaluations, sweeps and downloads that are killed at random moments end as if nothing had happened.

    pytest tests/faults                                             # one round of each, a minute
    pytest tests/faults --rounds 100 --fault-log faults.jsonl       # the long form, an hour
    python -m tests.faults.counts faults.jsonl                      # its table

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
from tests.conftest import is_long_form
from tests.datasets.web_server import running_server
from tests.faults import children
from tests.faults.counts import table
from tests.faults.killing import (
    FAULTS,
    Record,
    Victim,
    assert_sound,
    finished,
    leftovers,
    measure,
    outcome,
    small_disk,
)
from tests.trainers.small_runs import data_root

FAULTS_OF = {
    **dict.fromkeys(("test_a_run", "test_an_evaluation", "test_a_sweep"), FAULTS),
    "test_a_download": FAULTS[:-1],  # in pieces of 64 KiB, for which there is always memory
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


@pytest.fixture
def record(request, fault, fault_round):
    """Is told every strike and the end, and writes a line to the log."""
    name = request.node.originalname.removeprefix("test_").replace("_", " ")
    round_ = Record(name, fault, fault_round)
    yield round_
    path = request.config.getoption("--fault-log")
    if path and round_.strikes:
        with open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps(dataclasses.asdict(round_)) + "\n")


@pytest.fixture
def rng(record):
    return random.Random(f"{record.victim} {record.fault} {record.round}")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An uninterrupted run: its folder and what it took."""
    folder, consoles = tmp_path_factory.mktemp("whole"), tmp_path_factory.mktemp("consoles")
    return folder / "0", measure(lambda output: Victim(children.run, (arguments(output),), consoles), folder)


@pytest.fixture(scope="module")
def strikes(request):
    """Faults in a row, before a victim may end."""
    return range(2 if is_long_form(request.config) else 1)


def test_a_run(fault, whole, tmp_path, record, rng, strikes):
    reference, need = whole
    folder = tmp_path / "disk" / "run"
    with small_disk(fault, tmp_path / "disk", need.disk(rng)) as make_room:
        for number in strikes:
            workers = ("DATALOADER.NUM_WORKERS", str(rng.choice([0, 0, 0, 2])))
            victim = Victim(children.run, (arguments(folder, *workers),), tmp_path / f"consoles{number}")
            victim.strike(fault, rng, need, record)
            assert_sound(folder)
        make_room()
        before = finished(folder)
        Victim(children.run, (arguments(folder),), tmp_path / "last").finish()
        assert outcome(folder) == outcome(reference)
        assert before in ({}, finished(folder)), "a finished result was lost"
        if not before:
            assert leftovers(folder) == []
    record.as_if_nothing = True


@pytest.fixture(scope="module")
def whole_evaluation(whole, tmp_path_factory):
    """What an uninterrupted evaluation of the trained run takes."""
    folder, consoles = tmp_path_factory.mktemp("evaluation"), tmp_path_factory.mktemp("consoles")
    return measure(lambda output: Victim(children.run, (evaluation_arguments(output, whole[0]),), consoles), folder)


def evaluation_arguments(output, trained):
    return arguments(output, flags=("--eval-only", "--model-dir", str(trained)))


def test_an_evaluation(fault, whole, whole_evaluation, tmp_path, record, rng, strikes):
    trained, _ = whole
    folder = tmp_path / "disk" / "run"
    with small_disk(fault, tmp_path / "disk", whole_evaluation.disk(rng)) as make_room:
        victim = Victim(children.run, (evaluation_arguments(folder, trained),), tmp_path / "consoles")
        for _ in strikes:
            victim.strike(fault, rng, whole_evaluation, record)
            assert_sound(folder)
        make_room()
        before = finished(folder)
        victim.finish()
        name = "results.json"
        assert outcome(folder)[name][0] == outcome(trained)[name][0]
        assert before in ({}, finished(folder)), "a finished result was lost"
        if not before:
            assert leftovers(folder) == []
    record.as_if_nothing = True


@pytest.fixture(scope="module")
def whole_sweep(tmp_path_factory):
    """An uninterrupted sweep: its output and what it took."""
    folder, consoles = tmp_path_factory.mktemp("sweep"), tmp_path_factory.mktemp("consoles")
    return folder / "0", measure(
        lambda output: Victim(children.run_sweep, (sweep_arguments(output),), consoles), folder
    )


def sweep_arguments(output):
    options = [*OPTIONS[4:], "OPTIM.MAX_EPOCH", "2"]
    return [
        *("--protocol", "open_world", "--trainers", "CoOp=tiny_c4_ep50_batch32", "--datasets", "digits"),
        *("--seeds", "1", "2", "--shots", "2", "--root", data_root(), "--output", str(output)),
        *("--launcher", "inline", "--gpus", "--retry", "--", *options),
    ]


def test_a_sweep(fault, whole_sweep, tmp_path, record, rng, strikes):
    reference, need = whole_sweep
    folder = tmp_path / "disk" / "output"
    with small_disk(fault, tmp_path / "disk", need.disk(rng)) as make_room:
        victim = Victim(children.run_sweep, (sweep_arguments(folder),), tmp_path / "consoles")
        for _ in strikes:
            before = finished(folder)
            victim.strike(fault, rng, need, record)
            assert_sound(folder)
            assert before.items() <= finished(folder).items(), "a finished result was lost"
        make_room()
        before = finished(folder)
        victim.finish()
        assert before.items() <= finished(folder).items(), "a finished result was lost"
        assert outcome(folder) == outcome(reference)
        assert leftovers(folder) == []
    record.as_if_nothing = True


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


@pytest.fixture(scope="module")
def whole_download(shop, tmp_path_factory):
    """What an uninterrupted download takes."""
    folder, consoles = tmp_path_factory.mktemp("download"), tmp_path_factory.mktemp("consoles")
    return measure(lambda root: Victim(children.run_download, (shop[0], str(root)), consoles), folder)


def test_a_download(fault, shop, whole_download, tmp_path, record, rng, strikes):
    info, expected = shop
    root = tmp_path / "data"
    with small_disk(fault, root, whole_download.disk(rng)) as make_room:
        victim = Victim(children.run_download, (info, str(root)), tmp_path / "consoles")
        for _ in strikes:
            victim.strike(fault, rng, whole_download, record)
            if (root / "toys" / "pic").exists():
                assert len(list((root / "toys" / "pic").rglob("*.jpg"))) == 600, "a part passes for the whole"
        make_room()
        victim.finish()
        assert there(root / "toys") == expected
    record.as_if_nothing = True


def test_the_table_counts_faults_that_struck_and_rounds_that_ended_well():
    rounds = [
        Record("a run", "SIGKILL", 0, [{"status": -9}, {"status": 0}], True),
        Record("a run", "SIGKILL", 1, [{"status": -9}, {"status": -9}], False),
        Record("a run", "SIGTERM", 0, [{"status": 75}], True),
    ]
    lines = table(dataclasses.asdict(record) for record in rounds).splitlines()
    assert lines[2:] == [
        "| a run | SIGKILL | 2 | 4 | 3 | 1 |",
        "| a run | SIGTERM | 1 | 1 | 1 | 1 |",
        "| all |  | 3 | 5 | 4 | 2 |",
    ]


def there(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
