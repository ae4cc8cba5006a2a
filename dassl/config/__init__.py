"""Configuration: Dassl's keys and defaults, in a yacs tree whose errors name the key, its source and its neighbours."""

from yacs.config import CfgNode as _YacsNode

from .checks import check_cfg, check_values
from .defaults import _C as cfg_default
from .node import CfgNode, ConfigError, ConfigTypeError, UnknownKeyError

__all__ = [
    "CfgNode",
    "ConfigError",
    "ConfigTypeError",
    "UnknownKeyError",
    "cfg_default",
    "check_cfg",
    "check_values",
    "clean_cfg",
    "get_cfg_default",
]


def get_cfg_default() -> CfgNode:
    """Return an independent copy of the default configuration, with every key that imported modules added to it."""
    return cfg_default.clone()


def clean_cfg(cfg: _YacsNode, trainer: str) -> None:
    """Drop the sections of all other trainers, so that a printed config shows only what the run reads.

    Args:
        cfg: configuration, changed in place.
        trainer: name of the trainer; its section is the name in capitals.
    """
    keep = {"NAME", trainer.upper()}
    for key in [key for key in cfg.TRAINER if key not in keep]:
        del cfg.TRAINER[key]
