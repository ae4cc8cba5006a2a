"""The result parsers of the CoOp family's repositories go on working on our logs."""

import pytest

import train
from results.schema import Run
from tests.reporting.coop_log import last_result
from tests.test_train import arguments

TRAINED = ("DATASET.SUBSAMPLE_CLASSES", "base", "TEST.CLASS_SPLITS", "('base', 'new')")


@pytest.fixture(scope="module", autouse=True)
def repository_folder(request):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(request.config.rootpath)
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run trained on the bundled digits, by the real entry point."""
    folder = tmp_path_factory.mktemp("runs") / "seed1"
    assert train.main(arguments("CoOp", folder, *TRAINED)) == 0
    return folder


def test_the_result_after_training_is_found(folder):
    run = Run.read(folder / "results.json")
    # one result block per class split, the last counts
    assert last_result(folder / "log.txt") == pytest.approx(run.accuracy("new"), abs=0.0501)
    macro_f1 = run.record["metrics"]["new"]["macro_f1"]
    assert last_result(folder / "log.txt", "macro_f1") == pytest.approx(macro_f1, abs=0.0501)


def test_an_evaluation_log_is_read_with_its_own_end_signal(folder, tmp_path):
    options = ("DATASET.SUBSAMPLE_CLASSES", "new")
    flags = ["--eval-only", "--model-dir", str(folder)]
    assert train.main([*flags, *arguments("CoOp", tmp_path / "seed1", *options)]) == 0
    log = tmp_path / "seed1" / "log.txt"
    assert last_result(log) is None  # nothing was trained
    expected = Run.read(tmp_path / "seed1" / "results.json").accuracy("new")
    assert last_result(log, end_signal="=> result") == pytest.approx(expected, abs=0.0501)


def test_a_log_that_was_cut_short_has_no_result(folder, tmp_path):
    text = (folder / "log.txt").read_text()
    cut = tmp_path / "log.txt"
    cut.write_text(text[: text.index("Finish training")])
    assert last_result(cut) is None
