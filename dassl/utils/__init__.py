"""Helpers: files, logging, meters, registry, checkpoints, random states, parameters."""

from .checkpoint import (
    CheckpointError,
    load_checkpoint,
    load_pretrained_weights,
    resume_from_checkpoint,
    save_checkpoint,
)
from .files import (
    atomic_write,
    check_isfile,
    download_url,
    get_file_extension,
    is_zip,
    listdir_nohidden,
    mkdir_if_missing,
    read_json,
    write_json,
)
from .logger import Logger, setup_logger
from .meters import AverageMeter, MetricMeter
from .random_state import derive_seed, get_random_state, seeded_random_state, set_random_seed, set_random_state
from .registry import Registry, UnknownNameError, check_availability, get_most_similar_str_to_a_from_b
from .stopping import RunStopped, StopRequest
from .tools import UnreadableImageError, collect_env_info, open_image, read_image, tolist_if_not
from .torchtools import count_num_param, init_network_weights, open_all_layers, open_specified_layers

__all__ = [
    "AverageMeter",
    "CheckpointError",
    "Logger",
    "MetricMeter",
    "Registry",
    "RunStopped",
    "StopRequest",
    "UnknownNameError",
    "UnreadableImageError",
    "atomic_write",
    "check_availability",
    "check_isfile",
    "collect_env_info",
    "count_num_param",
    "derive_seed",
    "download_url",
    "get_file_extension",
    "get_most_similar_str_to_a_from_b",
    "get_random_state",
    "init_network_weights",
    "is_zip",
    "listdir_nohidden",
    "load_checkpoint",
    "load_pretrained_weights",
    "mkdir_if_missing",
    "open_all_layers",
    "open_image",
    "open_specified_layers",
    "read_image",
    "read_json",
    "resume_from_checkpoint",
    "save_checkpoint",
    "seeded_random_state",
    "set_random_seed",
    "set_random_state",
    "setup_logger",
    "tolist_if_not",
    "write_json",
]
