"""Helpers under Dassl's import names: files, log, registry, meters, random states, checkpoints, images, signals."""

# ruff: noqa: F401  an index: what others import from here

from common.files import atomic_write, is_zip

from .checkpoint import (
    CheckpointError,
    load_checkpoint,
    load_pretrained_weights,
    resume_from_checkpoint,
    save_checkpoint,
)
from .images import UnreadableImageError, open_image, read_image
from .stopping import RunStopped, StopRequest
from .tools import (
    Logger,
    Registry,
    UnknownNameError,
    check_availability,
    check_isfile,
    collect_env_info,
    derive_seed,
    download_url,
    get_most_similar_str_to_a_from_b,
    get_random_state,
    listdir_nohidden,
    mkdir_if_missing,
    read_json,
    seeded_random_state,
    set_random_seed,
    set_random_state,
    setup_logger,
    tolist_if_not,
    write_json,
)
from .torchtools import (
    AverageMeter,
    MetricMeter,
    count_num_param,
    init_network_weights,
    open_all_layers,
    open_specified_layers,
)
