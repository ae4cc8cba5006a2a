"""The configuration tree: Dassl's values, and errors that say what is wrong."""

import pickle

import pytest
import yaml
from yacs.config import CfgNode as YacsNode

from dassl.config import ConfigError, ConfigTypeError, UnknownKeyError, cfg_default, clean_cfg, get_cfg_default


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("SEED", -1),
        ("OUTPUT_DIR", "./output"),
        ("INPUT.SIZE", (224, 224)),
        ("INPUT.RRCROP_SCALE", (0.08, 1.0)),
        ("DATASET.NUM_SHOTS", -1),
        ("DATALOADER.NUM_WORKERS", 4),
        ("DATALOADER.TRAIN_U.SAME_AS_X", True),
        ("OPTIM.NAME", "adam"),
        ("OPTIM.LR", 0.0003),
        ("OPTIM.WARMUP_CONS_LR", 1e-5),
        ("OPTIM.WARMUP_RECOUNT", True),
        ("TRAIN.PATIENCE", 0),
        ("TEST.FINAL_MODEL", "last_step"),
        ("TRAINER.MCD.N_STEP_F", 4),
        ("TRAINER.MME.LMDA", 0.1),
        ("TRAINER.FIXMATCH.CONF_THRE", 0.95),
    ],
)
def test_defaults(key, value):
    node = get_cfg_default()
    for part in key.split("."):
        node = node[part]
    assert node == value
    assert type(node) is type(value)


def test_a_copy_is_independent_and_a_yacs_node():
    cfg = get_cfg_default()
    assert isinstance(cfg, YacsNode)
    cfg.OPTIM.LR = 1.0
    cfg.freeze()
    with pytest.raises(AttributeError):
        cfg.SEED = 3
    assert cfg_default.OPTIM.LR == 0.0003
    assert not cfg_default.is_frozen()
    assert yaml.safe_load(cfg.dump())["OPTIM"]["LR"] == 1.0
    assert pickle.loads(pickle.dumps(cfg)) == cfg


def test_foreign_nodes_take_part_in_merging(tmp_path):
    cfg = get_cfg_default()
    cfg.TRAINER.MINE = YacsNode()
    cfg.TRAINER.MINE.N_CTX = 16
    file = tmp_path / "mine.yaml"
    file.write_text("TRAINER:\n  MINE:\n    N_CTX: 4\n")
    cfg.merge_from_file(file)
    assert cfg.TRAINER.MINE.N_CTX == 4
    cfg.merge_from_list(["TRAINER.MINE.N_CTX", "2"])
    assert cfg.clone().TRAINER.MINE.N_CTX == 2


def write_files(folder, **contents):
    for name, content in contents.items():
        (folder / f"{name}.yaml").write_text(content)


def test_a_file_is_laid_over_its_bases_and_the_last_of_them_wins(tmp_path):
    (tmp_path / "base").mkdir()
    write_files(tmp_path / "base", first="OPTIM: {LR: 0.1, NAME: sgd}\nSEED: 1\n", second="SEED: 2\n")
    write_files(tmp_path, run="_BASE_: [base/first.yaml, base/second.yaml]\nOPTIM: {LR: 0.3}\n", empty="")
    write_files(tmp_path, further="_BASE_: run.yaml\nTRAIN: {PATIENCE: 2}\n")
    cfg = get_cfg_default()
    cfg.merge_from_file(tmp_path / "further.yaml")
    assert (cfg.OPTIM.LR, cfg.OPTIM.NAME, cfg.SEED, cfg.TRAIN.PATIENCE) == (0.3, "sgd", 2, 2)
    cfg.merge_from_file(tmp_path / "empty.yaml")
    assert cfg.SEED == 2


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("_BASE_: none.yaml", r"run.yaml: its _BASE_ none.yaml is no file \(looked at .*none.yaml\)"),
        ("_BASE_: run.yaml", r"run.yaml: its _BASE_ leads to more than 32 files, perhaps in a circle"),
        ("_BASE_: [other.yaml, other.yaml]", r"run.yaml: its _BASE_ leads to more than 32 files"),
        ("_BASE_: {SEED: 1}", r"run.yaml: _BASE_ names a file or a list of files, not \{'SEED': 1\}"),
        ("_BASE_: [3]", r"run.yaml: _BASE_ names a file or a list of files, not 3"),
        ("_BASE_: list.yaml", r"list.yaml: expected sections and keys, got a list"),
        ("_BASE_: typo.yaml", r"run.yaml: unknown key OPTIM.LRR"),
        ("_BASE_: .", r"run.yaml: its _BASE_ \. is no file"),
    ],
)
def test_bases_that_cannot_be_used(tmp_path, content, reason):
    write_files(tmp_path, run=content, list="- 1", typo="OPTIM: {LRR: 1}", other="_BASE_: run.yaml")
    with pytest.raises(ConfigError, match=reason):
        get_cfg_default().merge_from_file(tmp_path / "run.yaml")


def test_modules_extend_the_default():
    cfg_default.TRAINER.ADDED_BY_TEST = YacsNode({"N_CTX": 3})
    try:
        assert get_cfg_default().TRAINER.ADDED_BY_TEST.N_CTX == 3
    finally:
        del cfg_default.TRAINER["ADDED_BY_TEST"]


def test_unknown_key_in_a_file_names_file_key_and_neighbour(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("SEED: 5\nOPTIM:\n  LRR: 0.1\n")
    cfg = get_cfg_default()
    with pytest.raises(UnknownKeyError) as error:
        cfg.merge_from_file(str(file))
    assert isinstance(error.value, KeyError)
    assert isinstance(error.value, ValueError)
    for part in (str(file), "OPTIM.LRR", "OPTIM.LR"):
        assert part in str(error.value)
    assert cfg.SEED == -1, "a refused file changes nothing"


@pytest.mark.parametrize(
    ("key", "near"),
    [
        ("DATASET.NUM_SHOT", "DATASET.NUM_SHOTS"),
        ("optim.lr", "OPTIM.LR"),
        ("MAX_EPOCH", "OPTIM.MAX_EPOCH"),
        ("OPTIM.LR.X", "OPTIM.LR"),
    ],
)
def test_unknown_option_names_the_nearest_key(key, near):
    with pytest.raises(UnknownKeyError, match=f"option {key}: unknown key {key}.*{near}"):
        get_cfg_default().merge_from_list([key, "1"])


def test_a_key_like_no_other_names_the_sections():
    with pytest.raises(UnknownKeyError, match="Known sections: DATALOADER, DATASET"):
        get_cfg_default().merge_from_list(["zzzz", "1"])


@pytest.mark.parametrize(
    ("key", "value", "parts"),
    [
        ("OPTIM.LR", "fast", ("float", "str", "'fast'", "0.0003")),
        ("SEED", "1.5", ("int", "float", "1.5")),
        ("USE_CUDA", "1", ("bool", "int")),
        ("INPUT.SIZE", "224", ("tuple", "int", "224")),
        ("OPTIM", "adam", ("OPTIM is a section", "LR_SCHEDULER", "'adam'")),
    ],
)
def test_wrong_type_names_key_wanted_type_and_value(key, value, parts):
    with pytest.raises(ConfigTypeError) as error:
        get_cfg_default().merge_from_list([key, value])
    assert all(part in str(error.value) for part in (key, *parts))


def test_values_are_read_as_yacs_reads_them():
    cfg = get_cfg_default()
    cfg.merge_from_list(
        ["OPTIM.LR", "2e-3", "OPTIM.GAMMA", "1", "INPUT.SIZE", "[48, 48]", "INPUT.TRANSFORMS", "('random_flip',)"]
    )
    assert cfg.OPTIM.LR == 2e-3
    assert cfg.OPTIM.GAMMA == 1.0
    assert type(cfg.OPTIM.GAMMA) is float
    assert cfg.INPUT.SIZE == (48, 48)
    assert cfg.INPUT.TRANSFORMS == ("random_flip",)


def test_a_list_of_options_is_merged_whole_or_not_at_all():
    cfg = get_cfg_default()
    with pytest.raises(UnknownKeyError):
        cfg.merge_from_list(["SEED", "3", "NO.SUCH", "1"])
    assert cfg.SEED == -1
    with pytest.raises(ConfigError, match="pairs"):
        cfg.merge_from_list(["SEED"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("SEED: !!python/object/apply:os.getcwd []", "not YAML of plain values"),
        ("SEED: [1", "not YAML of plain values"),
        ("just words", "expected sections and keys"),
        ("OPTIM:\n", "OPTIM is a section"),
    ],
)
def test_files_that_cannot_be_used(tmp_path, text, message):
    file = tmp_path / "run.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=message) as error:
        get_cfg_default().merge_from_file(str(file))
    assert str(file) in str(error.value)


def test_missing_python_and_empty_files(tmp_path):
    cfg = get_cfg_default()
    with pytest.raises(FileNotFoundError, match=r"nowhere\.yaml"):
        cfg.merge_from_file("nowhere.yaml")
    code = tmp_path / "cfg.py"
    code.write_text("raise SystemExit")
    with pytest.raises(ConfigError, match="expected the extension"):
        cfg.merge_from_file(str(code))
    with code.open() as file, pytest.raises(ConfigError, match="would run code"):
        type(cfg).load_cfg(file)
    empty = tmp_path / "empty.yaml"
    empty.write_text("# nothing\n")
    cfg.merge_from_file(str(empty))
    assert cfg == get_cfg_default()


def test_merge_from_other_cfg():
    cfg = get_cfg_default()
    cfg.merge_from_other_cfg(YacsNode({"OPTIM": {"LR": 0.5}}))
    assert cfg.OPTIM.LR == 0.5
    with pytest.raises(UnknownKeyError):
        cfg.merge_from_other_cfg(YacsNode({"OPTIM": {"RATE": 0.5}}))


def test_clean_cfg_keeps_the_trainers_own_section():
    cfg = get_cfg_default()
    clean_cfg(cfg, "FixMatch")
    assert set(cfg.TRAINER) == {"NAME", "FIXMATCH"}
