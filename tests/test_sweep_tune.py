"""sweep.py --tune: equal numbers of trials, judged on validation images only, and the runs of what they choose."""

import contextlib
import json
import sys
from statistics import fmean

import pytest

import sweep
import train
from common.free_options import flatten
from dassl.config import get_cfg_default, read_config
from dassl.utils import images
from sweeping.plan import FITTED, SETTINGS, UNTRAINED, Plan, SweepError, setting_file, settings_of
from sweeping.runner import record_failure
from sweeping.tune import LR, RATE, Tuning, draw, search_space
from tests.ours import TRAINERS
from tests.stand_in_train import results
from trainers.base import RANGES, Between

TUNABLE = [name for name in TRAINERS if name not in (*UNTRAINED, *FITTED)]
SPACE = {LR: RATE, "TRAINER.KGCOOP.W": Between(1.0, 32.0)}


def contains(values, value):
    return values.low <= value <= values.high if isinstance(values, Between) else value in values


@pytest.mark.parametrize("trainer", TUNABLE)
def test_every_method_says_what_it_is_tuned_in_and_the_published_values_are_within(trainer):
    space, defaults = search_space(trainer), flatten(get_cfg_default())
    assert contains(space.pop(LR), 1.0)
    for key, values in space.items():
        least, *_, most = RANGES.get(key, (float("-inf"), float("inf")))
        if isinstance(values, Between):
            assert least <= values.low < values.high <= most
            assert values.low > 0 or not values.log
        files = [name for name in settings_of(trainer) if name.startswith(tuple(SETTINGS[trainer].values()))]
        for setting in files:
            published = flatten(read_config(setting_file(trainer, setting))).get(key, defaults[key])
            assert contains(values, published), f"{setting}: {key} {published}"


@pytest.mark.parametrize("trainer", [*UNTRAINED, *FITTED])
def test_methods_with_nothing_to_tune_are_named(trainer):
    with pytest.raises(SweepError, match=f"{trainer} .*: run it without --tune"):
        search_space(trainer)


@pytest.mark.parametrize("sampler", ["random", "grid"])
@pytest.mark.parametrize("n", [1, 4, 7])
def test_as_many_trials_as_asked_for_all_different_and_the_same_again(sampler, n):
    pytest.importorskip("optuna", reason="optuna is not installed")
    for space in (SPACE, {LR: RATE}, {LR: RATE, "TRAINER.CLIP_LORA.R": (2, 4, 8, 16)}):
        trials = draw(space, n, sampler, seed=3)
        assert trials == draw(space, n, sampler, seed=3)
        assert len({json.dumps(trial) for trial in trials}) == n
        for trial in trials:
            assert all(contains(space[key], value) for key, value in trial.items())
    assert draw(SPACE, n, "random", 3)[0] == {}, "the setting as it is"


def test_a_grid_reaches_from_end_to_end():
    pytest.importorskip("optuna", reason="optuna is not installed")
    trials = draw(SPACE, 6, "grid", 0)
    assert sorted({trial[LR] for trial in trials}) == [0.1, 1.0, 10.0]
    assert sorted({trial["TRAINER.KGCOOP.W"] for trial in trials}) == [1.0, 32.0]
    assert all(set(trial) == {LR} for trial in draw(SPACE, 2, "grid", 0)), "the other stays as it is"


# ---- the choice, on stand-in results

LOSSES = {  # by data set, of four trials; None: it failed
    "digits": [0.9, 0.1, 0.5, 0.6],
    "emoji_kinds": [0.8, 0.9, 0.2, 0.3],
    "emoji_concepts": [0.7, None, 0.6, 0.4],
}


@pytest.fixture
def tuned(tmp_path, monkeypatch, request):
    """A function that makes a tuning whose trials have these losses."""
    pytest.importorskip("optuna", reason="optuna is not installed")
    monkeypatch.chdir(request.config.rootpath)

    def make(judged_on="own", losses=LOSSES, **others):
        plan = Plan("open_world", ("CoOp", "KgCoOp"), tuple(losses), seeds=(1, 2), output=tmp_path, **others)
        tuning = Tuning(plan, 4, "random", 0, judged_on)
        for case in tuning.cases:
            for job, loss in zip(case.jobs, losses[case.dataset], strict=True):
                job.folder.mkdir(parents=True, exist_ok=True)
                if loss is None:
                    record_failure(job, "exit status 3")
                    continue
                record = results({"DATASET": {"NUM_SHOTS": 16}}) | {"protocol": "tuning"}
                record["metrics"]["base"]["calibration"] = {"nll": loss}
                (job.folder / "results.json").write_text(json.dumps(record))
        return tuning

    return make


def test_a_data_sets_own_validation_images_choose_for_it(tuned):
    tuning = tuned()
    plans = tuning.choose()
    assert [case.best for case in tuning.cases] == [1, 2, 3] * 2
    for plan, case in zip(plans, tuning.cases, strict=True):
        ((name, options),) = plan.variations
        values = {key: str(value) for key, value in case.trials[case.best].items()}
        assert (name, dict(zip(options[::2], options[1::2], strict=True))) == ("tuned4", values)
        assert (plan.trainers, plan.datasets, plan.seeds) == ((case.trainer,), (case.dataset,), (1, 2))


def test_leave_one_data_set_out_never_looks_at_the_one_reported(tuned):
    tuning = tuned("other")
    tuning.choose()
    for case in tuning.cases:
        others = [losses for dataset, losses in LOSSES.items() if dataset != case.dataset]
        means = [None if None in column else pytest.approx(fmean(column)) for column in zip(*others, strict=True)]
        assert case.losses == means
    assert [case.best for case in tuning.cases] == [3, 3, 2] * 2
    changed = tuned("other", LOSSES | {"digits": [0.0, 9.0, 9.0, 9.0]})
    changed.choose()
    assert [case.best for case in changed.cases] == [3, 0, 0] * 2, "digits' own losses count for the others alone"


def test_every_method_has_the_same_trials_on_every_data_set(tuned):
    tuning = tuned()
    assert {len(case.jobs) for case in tuning.cases} == {4}
    assert len(tuning.jobs) == 2 * 3 * 4
    for case in tuning.cases:
        assert case.draws == next(other for other in tuning.cases if other.trainer == case.trainer).draws


def test_a_failed_trial_counts_and_is_shown(tuned):
    tuning = tuned()
    tuning.choose()
    assert tuning.table().count("| failed") == 2
    tuning.write()
    (path,) = tuning.plan.output.glob("open_world/KgCoOp/*_tuned4/emoji_concepts/shots16/tuning.json")
    record = json.loads(path.read_text())
    assert [trial["loss"] for trial in record["trials"]] == LOSSES["emoji_concepts"]
    assert record["trials"][1]["failed"] == "exit status 3"
    assert record["chosen"] == {"trial": 4, "values": tuning.cases[-1].trials[3]}
    with pytest.raises(SweepError, match=r"tuning\.json is no record of this tuning .*: choose another --output"):
        Tuning(tuning.plan, 4, "random", 7, "own")


def test_a_run_with_other_settings_in_a_trials_folder_does_not_count(tuned):
    tuning = tuned()
    (path,) = (job.folder / "results.json" for job in tuning.cases[0].jobs[1:2])
    path.write_text(path.read_text().replace('"NUM_SHOTS": 16', '"NUM_SHOTS": 4'))
    tuning.choose()
    assert (tuning.cases[0].losses[1], tuning.cases[0].best) == (None, 2)


def test_without_a_finished_trial_there_is_no_choice(tuned):
    with pytest.raises(SweepError, match="no trial of CoOp for digits has a loss"):
        tuned(losses={"digits": [None] * 4}).choose()


# ---- end to end


@pytest.fixture(scope="module")
def tuned_run(tmp_path_factory, request):
    """A tuning of CoOp in two trials: its command line and folder, and the images that a trial read."""
    pytest.importorskip("optuna", reason="optuna is not installed")
    output, read = tmp_path_factory.mktemp("tuned"), set()
    argv = ["--tune", "2", "--trainers", "CoOp", "--datasets", "digits", "--shots", "1", "--seeds", "1"]
    argv += ["--output", str(output), "--", "OPTIM.MAX_EPOCH", "1"]

    def read_image(path, *args, **kwargs):
        read.add(path)
        return images.read_image(path, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(request.config.rootpath)
        for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "CUDA_VISIBLE_DEVICES"):
            patch.setenv(variable, "1")  # set by the launcher, put back after the test
        patch.setattr("dassl.data.data_manager.read_image", read_image)
        (plan,) = sweep.plans_of(sweep.parse(argv))
        assert train.main(Tuning(plan, 2, "random", 0, "own").jobs[1].arguments) == 0
        seen = frozenset(read)
        assert sweep.main(argv) == 0
    return argv, output, seen


def test_a_trial_reads_training_and_validation_images_only(tuned_run, request):
    _, output, read = tuned_run
    paths = list(output.glob("tuning/base/CoOp/*/digits/shots1/seed0/results.json"))
    assert len(paths) == 2
    for record in map(json.loads, (path.read_text() for path in paths)):
        assert (record["protocol"], record["config"]["TEST"]["SPLIT"]) == ("tuning", "val")
        assert list(record["metrics"]) == ["base"]
        assert record["metrics"]["base"]["num_images"] == record["data"]["num_val"] == 5
    split = json.loads((request.config.rootpath / "assets/digits/split_digits.json").read_text())
    assert len(read) == 10
    assert not {path for path, *_ in split["test"]} & {"/".join(path.split("/")[-2:]) for path in read}


def test_the_choice_is_run_on_other_seeds_with_its_values_as_overrides(tuned_run):
    _, output, _ = tuned_run
    (path,) = output.glob("open_world/CoOp/*_tuned2/digits/shots1/seed1/results.json")
    record = json.loads(path.read_text())
    choice = json.loads((path.parents[1] / "tuning.json").read_text())
    assert set(record["metrics"]) == {"base", "new", "all"}
    assert record["overrides"] == {"OPTIM.MAX_EPOCH": 1, **choice["chosen"]["values"]}
    assert record["config"]["TEST"]["TUNING_TRIALS"] == len(choice["trials"]) == 2
    losses = [trial["loss"] for trial in choice["trials"]]
    assert choice["chosen"]["trial"] == losses.index(min(losses)) + 1


def test_the_same_command_runs_nothing_again_and_prints_trials_and_table(tuned_run, capsys, monkeypatch, request):
    argv, _, _ = tuned_run
    monkeypatch.chdir(request.config.rootpath)
    assert sweep.main(argv) == 0
    out = capsys.readouterr().out
    assert "start " not in out
    assert out.index("CoOp, 1 shots: negative log-likelihood of validation images, 2 trials") < out.index("### Digits")
    assert "\nRanges: OPTIM.LR x 0.1 to 10 (logarithmic)" in out
    assert "CoOp: tuned: the best of 2 trials on validation images." in out
    assert sweep.main([*argv[:-3], "--dry-run", *argv[-3:]]) == 0
    assert capsys.readouterr().out.count("# finished: python train.py") == 3


def test_a_dry_run_prints_the_trials(capsys, monkeypatch, request, tmp_path):
    pytest.importorskip("optuna", reason="optuna is not installed")
    monkeypatch.chdir(request.config.rootpath)
    argv = ["--tune", "3", "--trainers", "all", "--datasets", "digits", "--output", str(tmp_path / "out"), "--dry-run"]
    assert sweep.main(argv) == 0
    *runs, last = capsys.readouterr().out.splitlines()
    left_out = {"PromptKD"}
    assert len(runs) == 3 * len(set(TUNABLE) - left_out)
    assert all("--seed 0" in run and "TEST.SPLIT val" in run for run in runs)
    assert last == f"# then the {len(runs)} runs of these methods with their best values"
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--tune", "0"), "--tune 0: give numbers from 1 to 10000"),
        (("--tune", "2", "--tune-sampler", "best"), "invalid choice: 'best'"),
        (("--tune", "2", "--seeds", "0", "1"), "--tune-seed 0 is one of --seeds"),
        (("--tune", "2", "--shots", "-1"), "give --shots 1 or more"),
        (("--tune", "2", "--tune-on", "other"), "give several"),
        (("--tune", "2", "--vary", "OPTIM.LR", "1"), "--tune goes without --table, --vary and --stage"),
        (("--tune", "2", "--", "OPTIM.LR", "1"), "OPTIM.LR is tuned: leave it out of the options"),
        (
            ("--tune", "2", "--trainers", "LinearProbe", "--protocol", "few_shot"),
            "searches C on validation images by itself: run it without",
        ),
        (("--tune", "2", "--trainers", "ZeroshotCLIP"), "trains nothing, so there is nothing to tune"),
    ],
)
def test_what_cannot_be_tuned_is_refused_in_one_line(options, said, capsys, monkeypatch, request):
    monkeypatch.chdir(request.config.rootpath)
    argv = ["--trainers", "CoOp", "--datasets", "digits", *options]
    with pytest.raises(SystemExit) if "best" in options else contextlib.nullcontext():
        assert sweep.main(argv) == 2
    assert said in capsys.readouterr().err.splitlines()[-1]


def test_without_optuna_the_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(SweepError, match="^--tune needs Optuna: pip install optuna$"):
        draw(SPACE, 2, "random", 0)
