import json
import subprocess
import sys

import pytest

from results.schema import REQUIRED_KEYS, ResultsError, Run, find_results, load_runs, read_results


def rewrite(path, change):
    record = json.loads(path.read_text())
    change(record)
    path.write_text(json.dumps(record))
    return path


def test_a_run_reads_its_record(runs):
    run = Run.read(runs.add(trainer="MaPLe", seed=2))
    assert (run.trainer, run.seed, run.accuracy("base"), run.accuracy("missing")) == ("MaPLe", 2, 70.0, None)
    assert run.open_world("auroc") == 70.0
    assert not run.deterministic


def test_zero_shot_runs_are_deterministic(runs):
    assert Run.read(runs.add(zero_shot=True)).deterministic


def test_a_run_without_open_world_has_none(runs):
    run = Run.read(runs.add({"all": {"accuracy": 50}}))
    assert run.open_world("auroc") is None
    assert Run.read(runs.add({"base": {"accuracy": 50}})).open_world("auroc") is None


@pytest.mark.parametrize("key", [key for key in REQUIRED_KEYS if key != "schema_version"])
def test_a_missing_key_is_named_with_the_path(runs, key):
    path = runs.add(drop=[key])
    with pytest.raises(ResultsError, match=rf"missing keys: {key}$") as raised:
        read_results(path)
    assert str(path) in str(raised.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda record: record.update(schema_version=2), "schema_version is 2, this code reads 1"),
        (lambda record: record.pop("schema_version"), "missing keys: schema_version"),
        (lambda record: record.update(status="running"), "status is 'running'"),
        (lambda record: record.update(seed="one"), "seed should be int, is 'one'"),
        (lambda record: record.update(seed=True), "seed should be int, is True"),
        (lambda record: record.update(gates=3), "gates should be dict or null, is 3"),
        (lambda record: record["metrics"].update(base={}), "metrics.base.accuracy should be a number, is None"),
        (lambda record: record["metrics"].update(base=70.0), "metrics.base.accuracy should be a number"),
        (lambda record: record["metrics"]["new"].update(accuracy=float("nan")), "NaN is no number"),
        (lambda record: record["model"].clear(), "model.trainable_parameters should be a number"),
    ],
)
def test_a_record_that_does_not_fit_is_refused(runs, change, message):
    path = rewrite(runs.add(), change)
    with pytest.raises(ResultsError, match=message) as raised:
        read_results(path)
    assert str(path) in str(raised.value)


def test_a_file_cut_short_is_named(runs):
    path = runs.add()
    path.write_text(path.read_text()[:-40])
    with pytest.raises(ResultsError, match="cut short or damaged") as raised:
        read_results(path)
    assert str(path) in str(raised.value)


def test_no_json_object_is_refused(runs):
    path = runs.add()
    path.write_text("[1, 2]")
    with pytest.raises(ResultsError, match="expected a JSON object, got list"):
        read_results(path)


def test_a_missing_file_says_that_the_run_is_not_finished(tmp_path):
    with pytest.raises(FileNotFoundError, match="not finished"):
        read_results(tmp_path / "results.json")


def test_folders_are_searched_and_no_file_comes_twice(runs):
    first, second = runs.add(seed=1), runs.add(seed=2)
    assert find_results([second, runs.root, first.parent]) == [second, first]


def test_paths_without_runs_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no finished run"):
        find_results([tmp_path])
    with pytest.raises(FileNotFoundError, match="no such file or folder"):
        find_results([tmp_path / "nowhere"])


def test_every_bad_file_is_named_at_once(runs):
    runs.add(seed=1)
    bad = [runs.add(seed=2), runs.add(seed=3)]
    for path in bad:
        path.write_text("{")
    with pytest.raises(ResultsError) as raised:
        load_runs([runs.root])
    assert all(str(path) in str(raised.value) for path in bad)


def test_reporting_imports_no_torch_and_none_of_the_training_code():
    code = (
        "import sys, reporting.__main__; "
        "ours = {'torch', 'numpy', 'yacs', 'dassl.utils', 'results.evaluate', 'trainers', 'prompting', 'datasets'}; "
        "sys.exit(str(ours & set(sys.modules)) if ours & set(sys.modules) else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
