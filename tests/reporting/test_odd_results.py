"""A results.json that was damaged at any key gives a table, or one line that names it; never a traceback."""

import csv
import io
import json

import pytest

from reporting.__main__ import main
from results.schema import ResultsError, load_runs, read_results

ODD = (None, True, "x", -1, 2**70, 10**400, 1e308, [[]], {"x": []}, {"\x1b[31m": "\x1b[31m"})
COMMANDS = (
    *(["table", "--format", name] for name in ("md", "latex", "html", "csv", "json")),
    ["compare", "CoOp", "BMIP"],
)


def places(node, path=()):
    """Every key of a record, but of a config and the lists' later items."""
    yield path
    if isinstance(node, dict | list) and path != ("config",):
        for key in list(node) if isinstance(node, dict) else range(min(1, len(node))):
            yield from places(node[key], (*path, key))


def changed(record, path, value):
    record = json.loads(json.dumps(record))
    node = record
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = value
    return record


def test_a_record_with_any_odd_value_is_read_or_refused_in_one_line(runs, capsys):
    runs.add_experiment(datasets=("Digits",), seeds=(1,))
    (path,) = (path for path in runs.root.rglob("results.json") if "BMIP" in str(path))
    record = json.loads(path.read_text())
    refused = 0
    for place in list(places(record))[1:]:
        for value in ODD:
            path.write_text(json.dumps(changed(record, place, value)))
            try:
                read_results(path)
            except ResultsError:
                commands = COMMANDS[:1]
            else:
                commands = (COMMANDS[2], COMMANDS[-1])
            for command in commands:
                status = main([*command, str(runs.root)])  # raises what is no expected error
                out, err = capsys.readouterr()
                assert status in (0, 2)
                assert "\x1b" not in out + err
                assert status == 0 or len(err.splitlines()) == 1
                refused += status == 2
    assert refused


@pytest.mark.parametrize(
    ("command", "key"),
    [
        (["plot", "gates"], "gates"),
        (["plot", "curves"], "history"),
        (["plot", "confusion"], "metrics"),
        (["plot", "reliability"], "metrics"),
        (["html"], "environment"),
        (["html"], "timing"),
    ],
)
def test_a_plot_or_a_page_of_a_record_with_an_odd_value_is_drawn_or_refused(runs, command, key, capsys):
    entry = {"epoch": 1, "loss": 1.0, "text/1": 0.5}
    confusion = {"all": {"accuracy": 60.0, "confusion": [[1, 2], [3, 4]], "per_class": {"a": 1.0, "b": 2.0}}}
    if command == ["plot", "reliability"]:
        bins = {"count": [1, 2], "correct": [0, 2], "confidence": [0.4, 0.9]}
        confusion = {"all": {"accuracy": 60.0, "calibration": {"ece": 3.0, "bins": bins}}}
    path = runs.add(confusion, history=[entry] if key == "history" else [], gates={"per_epoch": [entry]})
    record = json.loads(path.read_text())
    target = str(runs.root / ("page.html" if command == ["html"] else "plot.svg"))
    for place in [place for place in places(record) if place[:1] == (key,)][-6:]:
        for value in (None, "x", 1e308, {"\x1b[31m": "\x1b[31m"}):
            path.write_text(json.dumps(changed(record, place, value)))
            try:
                read_results(path)
            except ResultsError:
                continue
            status = main([*command, str(path), "-o", target, "--force"])  # raises what is no expected error
            out, err = capsys.readouterr()
            assert "\x1b" not in out + err
            assert status == 0 or len(err.splitlines()) == 1


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("metrics", "all", "accuracy"), 10**400),
        (("metrics", "all", "accuracy"), -3),
        (("metrics", "all", "accuracy"), 101),
        (("metrics", "all", "accuracy"), True),
        (("metrics", "all", "open_world"), []),
        (("metrics", "all", "open_world"), {"open_H": []}),
        (("data", "split_sha256"), []),
        (("model", "backbone_sha256"), {}),
        (("model", "trainable_parameters"), True),
        (("seed",), 10**40),
        (("shots",), "16"),
        (("environment", "precision"), 1),
        (("timing", "total"), 1e308),
        (("history",), [{"epoch": 1, "loss": 1e308}]),
        (("metrics", "all", "confusion"), [[1, 2], [3]]),
        (("notes",), "\ud800"),
    ],
)
def test_the_file_and_the_key_are_named(runs, place, value):
    path = runs.add()
    path.write_text(json.dumps(changed(json.loads(path.read_text()), place, value)))
    with pytest.raises(ResultsError) as raised:
        read_results(path)
    message = str(raised.value)
    assert str(path) in message
    assert ".".join(place) in message
    assert len(message) < len(str(path)) + 200


def test_deep_nesting_is_refused_wherever_it_is(runs):
    path = runs.add(config={"A": 1})
    path.write_text(path.read_text().replace('{"A": 1}', '{"A":' * 200 + "1" + "}" * 200))
    with pytest.raises(ResultsError, match="config is nested more than"):
        read_results(path)


@pytest.mark.parametrize("name", ["folder", "csv"])
def test_own_images_of_older_records_are_named_by_where_they_lie(runs, name):
    first = runs.add(dataset=name, config={"DATASET": {"PATH": "/data/birds"}})
    (runs.root / "second").mkdir()
    (runs.root / "second" / "results.json").write_text(first.read_text().replace("birds", "bugs"))
    assert {run.dataset for run in load_runs([runs.root])} == {"birds", "bugs"}


def test_control_characters_of_names_are_shown_not_obeyed(runs, capsys):
    names = dict.fromkeys(("trainer", "setting", "dataset", "backbone", "selection_rule"), "\x1b]0;x\x07\nx")
    path = runs.add(seed=2)
    path.write_text(json.dumps(json.loads(path.read_text()) | names))
    runs.add(seed=1)
    for command in COMMANDS[:-1]:
        assert main([*command, str(runs.root)]) == 0
        out, err = capsys.readouterr()
        assert not {"\x1b", "\x07"} & set(out + err)


def test_no_name_is_a_formula_in_a_spreadsheet_and_numbers_stay_numbers(runs, capsys):
    path = runs.add(seed=2)
    path.write_text(json.dumps(json.loads(path.read_text()) | dict.fromkeys(("trainer", "setting"), "=1+1")))
    assert main(["table", "--format", "csv", str(runs.root)]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    runs.add(trainer="BMIP", seed=2)
    assert main(["compare", "BMIP", "=1+1", "--format", "csv", str(runs.root)]) == 0
    compared = next(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert (compared["second"], float(compared["difference"])) == ("'=1+1", 0.0)
    assert {(row["trainer"], row["setting"]) for row in rows} == {("'=1+1", "'=1+1")}
    assert float(rows[0]["mean"]) == 70.0


def test_runs_with_other_settings_are_other_rows_that_say_so(runs, capsys):
    for seed, epochs in ((1, 50), (2, 50), (3, 2)):
        runs.add(seed=seed, config={"SEED": seed, "OUTPUT_DIR": str(seed), "OPTIM": {"MAX_EPOCH": epochs}})
    assert main(["table", str(runs.root)]) == 0
    table = capsys.readouterr().out
    assert "CoOp (OPTIM.MAX_EPOCH 2)" in table
    assert "CoOp (OPTIM.MAX_EPOCH 50)" in table


def test_long_settings_that_begin_alike_are_rows_of_their_own(runs, capsys):
    for seed in (1, 2):
        runs.add(seed=seed, config={"TRAINER": {"WORDS": "x" * 200 + str(seed)}})
    assert main(["table", str(runs.root)]) == 0
    assert "1, 2 (n=2)" not in capsys.readouterr().out


@pytest.mark.parametrize(
    "config",
    [{}, {"SEED": 9}, {"DATALOADER": {"NUM_WORKERS": 8}}, {"FEATURES": {"FOLDER": "x"}}, {"OPTIM": {"NEW_KEY": 1}}],
)
def test_settings_that_decide_nothing_and_keys_of_other_versions_split_no_row(runs, config, capsys):
    runs.add(seed=1, config={"SEED": 1, "DATALOADER": {"NUM_WORKERS": 0}, "FEATURES": {"FOLDER": ""}})
    runs.add(seed=2, config=config)
    assert main(["table", str(runs.root)]) == 0
    assert "| CoOp     | 1, 2 (n=2) |" in capsys.readouterr().out


def test_columns_of_other_settings_and_recorded_changes_stand_in_the_legend(runs, capsys):
    for name, epochs in (("a", 50), ("b", 2)):
        runs.add(dataset=name, config={"OPTIM": {"MAX_EPOCH": epochs}}, overrides={"OPTIM.MAX_EPOCH": epochs})
    assert main(["table", str(runs.root)]) == 0
    table = capsys.readouterr().out
    assert "the columns' runs differ in OPTIM.MAX_EPOCH" in table
    assert "changed: OPTIM.MAX_EPOCH 50, OPTIM.MAX_EPOCH 2" in table


def test_copies_of_one_run_count_once(runs, capsys):
    record = json.loads(runs.add().read_text()) | {"finished_at": "2027", "timing": {"train": 2.0}}
    record["config"]["OUTPUT_DIR"] = "copy"
    (runs.root / "copy").mkdir()
    (runs.root / "copy" / "results.json").write_text(json.dumps(record))
    assert main(["table", str(runs.root)]) == 0
    out, err = capsys.readouterr()
    assert "(n=1)" in out
    assert "note: counted once" in err
