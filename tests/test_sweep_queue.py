"""The queue of a sweep: which runs a protocol needs, their settings, folders and command lines; and wrong requests."""

import pytest

import sweep
from dassl.engine import TRAINER_REGISTRY
from sweeping.plan import (
    ELEVEN,
    OWN_CLASSES,
    PROTOCOLS,
    SETTINGS,
    TABLES,
    Plan,
    SweepError,
    build_queue,
    bundled_plan,
    default_setting,
    plans_varied,
    published_setting,
    settings_of,
)
from tests.ours import TRAINERS

TINY = "tiny_c2_ep10_batch4_2ctx"


@pytest.fixture(autouse=True)
def repository_folder(monkeypatch, request):
    monkeypatch.chdir(request.config.rootpath)


def queue(protocol="open_world", trainers=("BMIP",), datasets=("digits",), seeds=(1,), **others):
    return build_queue(Plan(protocol, trainers, datasets, seeds=seeds, **others))


def option(job, key):
    return job.arguments[len(job.arguments) - 1 - job.arguments[::-1].index(key) + 1]


@pytest.fixture
def other_dataset(tmp_path):
    """Another config file for the same images."""
    path = tmp_path / "other.yaml"
    path.write_text("DATASET:\n  NAME: Digits\n")
    return str(path)


@pytest.mark.parametrize(
    ("protocol", "folder", "classes", "splits"),
    [
        ("open_world", f"open_world/BMIP/{TINY}/digits/shots16/seed1", "base", "('base', 'new', 'all')"),
        ("base_to_new", f"base_to_new/BMIP/{TINY}/digits/shots16/seed1", "base", "('base', 'new')"),
        ("base2new_train", f"base2new/train_base/digits/shots_16/BMIP/{TINY}/seed1", "base", "('base',)"),
        ("zero_shot", f"zero_shot/BMIP/{TINY}/digits/shots16/seed1", "all", "('all',)"),
    ],
)
def test_a_protocol_is_one_run_with_its_classes_and_folder(protocol, folder, classes, splits):
    (job,) = queue(protocol)
    assert str(job.folder) == f"output/{folder}"
    assert option(job, "--output-dir") == str(job.folder)
    assert (option(job, "DATASET.SUBSAMPLE_CLASSES"), option(job, "TEST.CLASS_SPLITS")) == (classes, splits)
    assert option(job, "TEST.PROTOCOL") == PROTOCOLS[protocol].name
    assert option(job, "--root") == "assets"
    assert job.needs is None


def test_few_shot_has_five_numbers_of_shots():
    assert [job.shots for job in queue("few_shot")] == [1, 2, 4, 8, 16]
    assert [option(job, "DATASET.NUM_SHOTS") for job in queue("few_shot", shots=(1, 3))] == ["1", "3"]


def test_seeds_come_one_after_the_other_and_untrained_methods_once():
    jobs = queue(trainers=("ZeroshotCLIP", "BMIP"), seeds=(1, 2))
    assert [(job.trainer, job.seed) for job in jobs] == [("ZeroshotCLIP", 1), ("BMIP", 1), ("BMIP", 2)]


def test_the_second_half_of_base2new_tests_what_the_first_half_trained():
    (train,), (test,) = queue("base2new_train"), queue("base2new_test")
    assert test.needs == train.folder
    assert option(test, "--model-dir") == str(train.folder)
    assert "--eval-only" in test.arguments
    assert "--eval-only" not in train.arguments


def test_transfer_trains_once_on_the_source_and_says_so(other_dataset):
    datasets = ("digits", other_dataset)
    across = queue("cross_dataset", datasets=datasets, source="digits", root="assets")
    assert [(job.dataset, job.needs is None) for job in across] == [("digits", True), ("other", False)]
    assert across[1].needs == across[0].folder
    assert {option(job, "TEST.SOURCE_DATASET") for job in across} == {"Digits"}
    domains = queue("domain_generalization", datasets=datasets, source="digits", root="assets")
    assert domains[0] == across[0]
    assert [job.dataset for job in domains[1:]] == ["digits", "other"]
    assert {job.needs for job in domains[1:]} == {across[0].folder}


def test_one_stage_of_a_transfer(other_dataset):
    plan = {"protocol": "cross_dataset", "datasets": ("digits", other_dataset), "source": "digits", "root": "assets"}
    assert [job.dataset for job in queue(**plan, stage="train")] == ["digits"]
    assert [job.dataset for job in queue(**plan, stage="evaluate")] == ["other"]
    with pytest.raises(SweepError, match="nothing to evaluate"):
        queue(**plan | {"datasets": ("digits",)}, stage="evaluate")
    with pytest.raises(SweepError, match="nothing to train of base2new_test: it tests other runs' weights"):
        queue("base2new_test", stage="train")


def test_variations_are_settings_of_their_own():
    axes = [["TRAINER.BMIP.PROMPT_DEPTH", "1", "2"], ["TRAINER.BMIP.GATE", "official"]]
    (plan,) = plans_varied(Plan("open_world", ("BMIP",), ("digits",), seeds=(1,)), axes)
    jobs = build_queue(plan)
    assert [job.setting for job in jobs] == [f"{TINY}_prompt_depth_{depth}_gate_official" for depth in (1, 2)]
    assert [option(job, "TRAINER.BMIP.PROMPT_DEPTH") for job in jobs] == ["1", "2"]
    assert all(option(job, "TEST.SETTING") == job.setting == job.folder.parts[-4] for job in jobs)


def test_the_users_options_come_last():
    (job,) = queue(options=("DATASET.NUM_SHOTS", "2"))
    assert job.arguments[-2:] == ("DATASET.NUM_SHOTS", "2")


@pytest.mark.parametrize(
    ("trainer", "protocol", "dataset", "shots", "name", "file"),
    [
        ("BMIP", "open_world", "eurosat", 16, "vit_b16_c2_ep10_batch4_2ctx", "vit_b16_c2_ep10_batch4_2ctx"),
        ("CoOp", "open_world", "imagenet", 16, "vit_b16_ctxv1", "vit_b16_ep50_ctxv1"),
        ("CoOp", "few_shot", "eurosat", 16, "vit_b16", "vit_b16"),
        ("CoOp", "few_shot", "eurosat", 4, "vit_b16", "vit_b16_ep100"),
        ("CoOp", "few_shot", "eurosat", 1, "vit_b16", "vit_b16_ep50"),
        ("CoPrompt", "open_world", "eurosat", 16, "coprompt", "coprompt_eurosat"),
        ("MMA", "open_world", "imagenet", 16, "vit_b16_ep5", "vit_b16_ep5_imagenet"),
        ("MMRL", "open_world", "eurosat", 16, "vit_b16", "vit_b16_eurosat"),
        ("MMRL", "few_shot", "imagenet", 1, "vit_b16_few_shot", "vit_b16_few_shot_imagenet"),
        ("MMRL", "cross_dataset", "eurosat", 16, "vit_b16_cross_datasets", "vit_b16_cross_datasets"),
        (
            *("PromptSRC", "few_shot", "dtd", 4, "vit_b16_c2_ep50_batch4_4+4ctx_few_shot"),
            "vit_b16_c2_ep50_batch4_4+4ctx_few_shot_gpa45",
        ),
    ],
)
def test_published_settings_are_one_row_with_a_file_per_case(trainer, protocol, dataset, shots, name, file):
    setting = published_setting(trainer, PROTOCOLS[protocol], dataset, shots)
    assert (setting.name, setting.file) == (name, file)
    assert setting.file in settings_of(trainer)


def test_transfer_uses_the_settings_made_for_it():
    for trainer in ("MaPLe", "PromptSRC", "BMIP", "MMA"):
        assert "_cross_datasets" in published_setting(trainer, PROTOCOLS["cross_dataset"], "imagenet", 16).name


def test_every_trainer_has_a_default_setting_for_every_protocol():
    for trainer in TRAINERS:
        for protocol in PROTOCOLS.values():
            for dataset in ("digits", *ELEVEN):
                for shots in protocol.shots:
                    assert published_setting(trainer, protocol, dataset, shots).file in settings_of(trainer)


def test_the_listed_settings_are_there_and_are_what_is_run():
    assert list(SETTINGS) == list(TRAINERS)
    for trainer, row in SETTINGS.items():
        assert set(row.values()) <= set(settings_of(trainer))
        assert default_setting(trainer, PROTOCOLS["open_world"], "digits") == row["tiny"]
        assert default_setting(trainer, PROTOCOLS["open_world"], "eurosat") == row["base"]


def test_a_trainer_that_is_not_listed_runs_the_only_setting_that_fits(monkeypatch, tmp_path):
    monkeypatch.setattr("sweeping.plan.TRAINER_CONFIGS", tmp_path)
    (tmp_path / "Mine").mkdir()
    for name in ("vit_b16_ep5", "vit_b16_ep5_deep", "vit_b16_ep2_cross_datasets", "rn50_ep5", "tiny", "mini_ep9"):
        (tmp_path / "Mine" / f"{name}.yaml").touch()
    for protocol, dataset, setting in (
        ("open_world", "eurosat", "vit_b16_ep5"),
        ("few_shot", "eurosat", "vit_b16_ep5"),
        ("cross_dataset", "imagenet", "vit_b16_ep2_cross_datasets"),
        ("open_world", "digits", "tiny"),
        ("open_world", "mini_food", "mini_ep9"),
    ):
        assert default_setting("Mine", PROTOCOLS[protocol], dataset) == setting
    (tmp_path / "Mine" / "vit_b16_ep9.yaml").touch()
    with pytest.raises(SweepError, match="several settings: say Mine=SETTING"):
        default_setting("Mine", PROTOCOLS["open_world"], "eurosat")


@pytest.mark.parametrize("name", TABLES)
def test_every_table_is_planned(name, capsys):
    given = {"compare": ["--trainers", "BMIP", "--datasets", "digits"], "demo": []}.get(name, ["--datasets", "bundled"])
    assert sweep.main(["--table", name, *given, "--seeds", "1", "--dry-run"]) == 0
    *runs, table = capsys.readouterr().out.splitlines()
    assert all(" train.py --root assets " in line for line in runs)
    assert table.startswith("python -m reporting table --protocol ")


def test_depths_are_each_methods_own_and_fit_the_bundled_model(capsys):
    argv = ["--table", "ablation_depth", "--trainers", "MaPLe", "BMIP", "--datasets", "digits", "--seeds", "1"]
    assert sweep.main([*argv, "--dry-run"]) == 0
    lines = capsys.readouterr().out.splitlines()[:-1]
    keys = [line.split()[-2:] for line in lines]
    assert keys == [
        [f"TRAINER.{node}.PROMPT_DEPTH", depth] for node in ("MAPLE", "BMIP") for depth in ("1", "2", "3", "4")
    ]


def test_bundled_data_stand_in_for_every_protocol():
    assert bundled_plan(PROTOCOLS["open_world"], "") == (("digits",), "")
    assert bundled_plan(PROTOCOLS["cross_dataset"], "") == (("emoji_kinds", "digits", "emoji_concepts"), "emoji_kinds")
    styles = tuple(f"emoji_kinds_{style}" for style in ("contrast", "flat", "fluent"))
    assert bundled_plan(PROTOCOLS["domain_generalization"], "") == (("emoji_kinds", *styles), "emoji_kinds")
    with pytest.raises(SweepError, match="needs configs/datasets/emoji_none.yaml"):
        bundled_plan(PROTOCOLS["cross_dataset"], "emoji_none")


def test_the_miniature_stands_in_for_every_protocol():
    sets, source = bundled_plan(PROTOCOLS["cross_dataset"], "", mini=True)
    assert (sets[0], source, len(sets)) == ("mini_objects", "mini_objects", 9)
    assert sorted(bundled_plan(PROTOCOLS["open_world"], "", mini=True)[0]) == sorted(sets)
    views = tuple(f"mini_objects_{name}" for name in ("edges", "pixel", "plain", "textured"))
    assert bundled_plan(PROTOCOLS["domain_generalization"], "", mini=True) == ((source, *views), source)


def test_settings_of_bundled_data_name_their_own_model():
    jobs = queue("cross_dataset", datasets=("emoji_kinds", "digits"), source="emoji_kinds")
    assert all("MODEL.BACKBONE.NAME" not in job.arguments for job in [*jobs, *queue()])


def test_dry_run_prints_commands_that_a_shell_reads_back(capsys):
    import shlex

    argv = [
        "--trainers",
        "BMIP",
        "--datasets",
        "digits",
        "--seeds",
        "1",
        "--dry-run",
        "--",
        "TRAINER.BMIP.CTX_INIT",
        "a b",
    ]
    assert sweep.main(argv) == 0
    printed = capsys.readouterr().out.strip()
    (job,) = queue(options=("TRAINER.BMIP.CTX_INIT", "a b"))
    assert shlex.split(printed) == job.command()
    assert "\"('base', 'new', 'all')\"" in printed


def test_classifiers_of_their_own_classes_are_run_where_they_can_be_tested():
    methods = {name: TRAINER_REGISTRY.get(name) for name in TRAINERS}
    assert {name for name, method in methods.items() if not getattr(method, "serves_new_classes", True)} == {
        *OWN_CLASSES
    }
    for protocol in ("open_world", "base_to_new", "base2new_test", "compare", "cross_dataset"):
        with pytest.raises(SweepError, match="LinearProbe predicts the classes that .* give --protocol few_shot"):
            queue(
                protocol,
                trainers=("LinearProbe",),
                datasets=("digits",),
                **({"source": "emoji_kinds"} if "cross" in protocol else {}),
            )
    for protocol in ("few_shot", "base2new_train"):
        assert queue(protocol, trainers=("LinearProbe",), datasets=("digits",))


def test_dry_run_may_stand_after_the_pairs():
    args = sweep.parse(["--trainers", "BMIP", "--", "OPTIM.LR", "0.1", "--dry-run"])
    assert args.dry_run
    assert args.opts == ["OPTIM.LR", "0.1"]


def test_two_runs_for_one_folder_are_refused(tmp_path, other_dataset):
    (tmp_path / "b").mkdir()
    second = tmp_path / "b" / "other.yaml"
    second.write_text("DATASET:\n  NAME: Digits\n")
    with pytest.raises(SweepError, match="two different runs"):
        queue(trainers=(f"BMIP={TINY}",), datasets=(other_dataset, str(second)), root="assets")


@pytest.mark.parametrize(
    ("pairs", "name"),
    [
        (("DATASET.PATH", "birds"), "birds"),
        (("DATASET.PATH", "deep/birds/"), "birds"),
        (("DATASET.PATH", "birds", "DATASET.LABEL", "my-birds"), "my-birds"),
        (("DATASET.PATH", "flowers"), "folder_flowers"),
        ((), "data"),
    ],
)
def test_own_data_have_a_folder_of_their_own(pairs, name, tmp_path):
    (job,) = queue(
        trainers=(f"BMIP={TINY}",), datasets=("folder",), seeds=(1,), root=str(tmp_path / "data"), options=pairs
    )
    assert job.folder.parts[-3] == name
