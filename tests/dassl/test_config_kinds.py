"""The table of keys: every key has a kind, and an odd value is taken by a rule or refused by one line that names it."""

import math

import pytest
import yaml
from yacs.config import CfgNode as YacsNode

import train  # noqa: F401  registers data sets, trainers and evaluation with their keys
from common.free_options import flatten
from dassl.config import (
    KEYS,
    CfgNode,
    ConfigError,
    cfg_default,
    check_cfg,
    check_values,
    get_cfg_default,
    kind_for,
)
from dassl.config.defaults import ANYTHING
from trainers.base import RANGES

DEFAULTS = {key: value for key, value in flatten(cfg_default).items() if not key.startswith("TRAINER.MINE")}
ODD = {
    "none": "None",
    "text": "some text",
    "number in quotes": "'3'",
    "not a number": "nan",
    "infinite": "1e999",
    "negative infinite": "-1e999",
    "zero": "0",
    "zero float": "0.0",
    "minus one": "-1",
    "huge": str(10**30),
    "huger": str(10**400),
    "too many digits": "0x" + "f" * 9000,
    "expression": "10**30",
    "true": "True",
    "empty": "",
    "empty tuple": "()",
    "one": "(1,)",
    "three": "(1, 2, 3)",
    "five": "(1, 2, 3, 4, 5)",
    "falling": "(2, 1)",
    "texts": "('0.1', '0.2', '0.3')",
    "texts and nothing": "('normalize', None)",
    "nested": "((1, 2), (3, 4))",
    "nested deeply": "(" * 90 + ")" * 90,
    "huge tuple": f"({10**30}, {10**30}, {10**30})",
    "infinite tuple": "(1e999, -1e999, 1e999)",
    "dictionary": "{'a': 1}",
    "unhashable": "{[]: 1}",
    "bytes": "b'x'",
    "complex": "1j",
    "backslash": "'\\d'",
    "control characters": "'\\x1b[31m\\0'",
    "half a character": "'\\ud800'",
    "long": "x" * 100_000,
    "long tuple": "(" + "1," * 2_000 + ")",
}


def outcome(cfg, key, merge):
    """The values that the key has after a merge that is not refused; ConfigError is the only error there may be."""
    try:
        merge(cfg)
        check_values(cfg, RANGES)
    except ConfigError as error:
        text = str(error)
        assert key in text
        assert len(text) < 4000
        assert "\n" not in text
        assert text.isprintable()
        return None
    return flatten(cfg).get(key)


@pytest.mark.parametrize("odd", ODD)
@pytest.mark.filterwarnings("error")
def test_an_odd_value_is_taken_by_a_rule_or_refused_by_one_line(odd):
    for key, default in DEFAULTS.items():
        cfg = get_cfg_default()
        cfg.DATASET.NAME = "Digits"
        value = outcome(cfg, key, lambda cfg, key=key: cfg.merge_from_list([key, ODD[odd]]))
        if value is not None:
            assert kind_for(key, default, RANGES).fits(value)
            assert not isinstance(value, float) or math.isfinite(value)
            assert isinstance(value, type(default))


PLAIN = [None, "x", math.nan, math.inf, 0, -1, 10**30, 0.5, True, [], [1], [1, 2, 3], [2, 1], [[1, 2]], ["x"], {"a": 1}]


@pytest.mark.parametrize("value", PLAIN, ids=repr)
def test_a_file_is_checked_as_options_are(value, tmp_path):
    for key in DEFAULTS:
        tree = value
        for part in reversed(key.split(".")):
            tree = {part: tree}
        path = tmp_path / "odd.yaml"
        path.write_text(yaml.safe_dump(tree))
        cfg = get_cfg_default()
        cfg.DATASET.NAME = "Digits"
        outcome(cfg, key, lambda cfg, path=path: cfg.merge_from_file(path))


@pytest.mark.parametrize("key", DEFAULTS)
def test_no_key_takes_nothing_nor_what_is_not_of_its_kind(key):
    kind = kind_for(key, DEFAULTS[key], RANGES)
    assert kind is not ANYTHING
    assert not kind.fits(None)
    assert not kind.fits([[[]]])
    assert key == "DATASET.NAME" or kind.fits(DEFAULTS[key])  # which every run must set


def test_the_table_names_no_key_that_is_not_there():
    assert set(KEYS) | set(RANGES) <= set(DEFAULTS)


REFUSED = {
    "OPTIM.LR": ["0", "-1", "1e4", "nan"],
    "OPTIM.MAX_EPOCH": ["0", "10000000"],
    "OPTIM.MOMENTUM": ["-0.1", "1.5"],
    "OPTIM.WEIGHT_DECAY": ["-1"],
    "OPTIM.ADAM_BETA1": ["1", "1.0", "-0.1"],
    "OPTIM.EPS": ["1", "-1e-8"],
    "OPTIM.WARMUP_EPOCH": ["-3", "10000000"],
    "OPTIM.STEPSIZE": ["()", "(1.5,)", "('1',)"],
    "OPTIM.GAMMA": ["-0.5"],
    "OPTIM.NEW_LAYERS": ["(1,)", "('',)"],
    "INPUT.SIZE": ["(1000000, 1000000)", "(0, 224)", "(224,)", "(224, True)", "(1, 2, 3)"],
    "INPUT.RRCROP_SCALE": ["(0, 1)", "(0.1, 1.1)", "(0.5,)", "('0.1', '1')"],
    "INPUT.RANDAUGMENT_M": ["31", "-1"],
    "INPUT.COLORJITTER_H": ["0.6"],
    "INPUT.RGS_P": ["1.1"],
    "INPUT.TRANSFORMS": ["('normalize', 3)", "('none',)"],
    "DATALOADER.NUM_WORKERS": ["1000000000"],
    "DATALOADER.CACHE_MB": ["-1"],
    "TEST.SPLIT": ["train"],
    "TRAIN.COUNT_ITER": ["x"],
    "FEATURES.MAX_GIB": ["-1"],
    "MODEL.INIT_SEED": [str(2**40)],
    "TRAINER.COOP.N_CTX": ["0", "-1", "1000000000"],
    "TRAINER.COOP.PREC": ["x", "fp32 "],
    "TRAINER.COOP.CLASS_TOKEN_POSITION": ["x", "0"],
    "TRAINER.COOP.CSC": ["x", "0"],
    "TRAINER.KGCOOP.W": ["-1", "nan"],
    "TRAINER.PROMPTSRC.GPA_MEAN": ["1e300"],
    "TRAINER.BMIP.GATE": ["x"],
    "TRAINER.COPROMPT.DISTILL": ["l1"],
    "TRAINER.PRODA.N_PROMPT": ["0", "1000000"],
    "TRAIN.FROZEN_LINEAR": ["x"],
    "TRAIN.CUDA_GRAPH": ["x", "1"],
}


def merge_and_check(cfg, key, value):
    cfg.merge_from_list([key, value])
    check_values(cfg, RANGES)


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, values in REFUSED.items() for value in values])
def test_values_out_of_range(key, value):
    cfg = get_cfg_default()
    cfg.DATASET.NAME = "Digits"
    with pytest.raises(ConfigError, match=key):
        merge_and_check(cfg, key, value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["INPUT.RRCROP_SCALE", "(0.9, 0.1)"], "INPUT.RRCROP_SCALE.*smaller share first"),
        (["INPUT.GB_K", "20"], "INPUT.GB_K is 20.*odd"),
        (["OPTIM.NAME", "sgd", "OPTIM.SGD_NESTEROV", "True", "OPTIM.MOMENTUM", "0"], "OPTIM.SGD_NESTEROV.*MOMENTUM"),
    ],
)
def test_values_that_do_not_go_together(options, message):
    cfg = get_cfg_default()
    cfg.merge_from_list(["DATASET.NAME", "Digits", *options])
    with pytest.raises(ConfigError, match=message):
        check_cfg(cfg, RANGES)


def test_other_peoples_keys_take_what_is_of_their_defaults_kind(monkeypatch):
    mine = {"N": 3, "W": 1.0, "ON": False, "NAME": "a", "LIST": (1, 2), "MIXED": (1, "a"), "FREE": None, "EMPTY": ()}
    monkeypatch.setitem(cfg_default.TRAINER, "MINE", YacsNode({**mine, "DEEP": ((1, 2), (3,)), "INF": math.inf}))
    cfg = get_cfg_default()
    cfg.DATASET.NAME = "Digits"
    check_values(cfg)
    good = ["N", "-7", "W", "2", "ON", "True", "NAME", "b", "LIST", "(4, 5, 6)", "MIXED", "('b',)", "FREE", "(1, 'x')"]
    cfg.merge_from_list([f"TRAINER.MINE.{word}" if place % 2 == 0 else word for place, word in enumerate(good)])
    check_values(cfg)
    for key, value in {
        "N": None,
        "W": math.nan,
        "ON": None,
        "NAME": None,
        "LIST": ["x"],
        "EMPTY": None,
        "DEEP": None,
    }.items():
        wrong = cfg.clone()
        wrong.TRAINER.MINE[key] = value
        with pytest.raises(ConfigError, match=f"TRAINER.MINE.{key} is"):
            check_values(wrong)


def test_keys_that_a_copy_alone_has_are_left_alone():
    """CoOp's `extend_cfg` adds a method's node to the copy of a run."""
    cfg = get_cfg_default()
    cfg.DATASET.NAME = "Digits"
    cfg.TRAINER.THEIRS = CfgNode({"N_CTX": 4, "PREC": None})
    check_cfg(cfg, RANGES)
