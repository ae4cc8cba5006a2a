"""Collects what results.json says about a run, from the trainer and its configuration."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dataset_label import dataset_label
from reporting.runs import deciding_settings
from results.determinism import describe_determinism
from results.protocols import train_classes_of
from results.results import collect_environment, peak_memory
from results.rundir import plain_config


def build_record(
    trainer: Any,
    cfg: Any,
    metrics: Mapping[str, Any],
    *,
    config_file: str,
    overrides: Mapping[str, Any],
    timing: Mapping[str, Any],
    eval_only: bool,
) -> dict[str, Any]:
    """The content of results.json, without what :func:`results.results.write_results` fills in.

    Args:
        trainer: any Dassl trainer; prompt trainers say more (gates, trained tensors).
        cfg: its configuration.
        metrics: of every class split.
        config_file: the trainer's config file, whose name is the setting's name unless ``TEST.SETTING`` gives one.
        overrides: see `overrides_of`.
        timing: seconds by phase; of those in `train`, `data` were spent waiting for the loader.
        eval_only: whether the weights were loaded rather than trained here.
    """
    splits = tuple(metrics)
    return {
        "protocol": cfg.TEST.PROTOCOL or guess_protocol(train_classes_of(cfg), splits),
        "trainer": cfg.TRAINER.NAME,
        "setting": cfg.TEST.SETTING or (Path(config_file).stem if config_file else "defaults"),
        "dataset": dataset_label(cfg.DATASET),
        **({"source_dataset": cfg.TEST.SOURCE_DATASET} if cfg.TEST.SOURCE_DATASET else {}),
        "backbone": cfg.MODEL.BACKBONE.NAME,
        "seed": cfg.SEED,
        "init_seed": cfg.MODEL.INIT_SEED if cfg.MODEL.get("INIT_SEED", -1) >= 0 else cfg.SEED,
        "shots": cfg.DATASET.NUM_SHOTS,
        "train_classes": train_classes_of(cfg),
        "selection_rule": selection_rule(cfg),
        "eval_only": eval_only,
        "config": plain_config(cfg),
        "overrides": dict(overrides),
        "environment": {
            **collect_environment(trainer.device, precision_of(trainer)),
            **({"frozen_linear": trainer.linear_kernels} if hasattr(trainer, "linear_kernels") else {}),
            "determinism": describe_determinism(
                cfg, trainer.device, not hasattr(trainer, "is_exact") or trainer.is_exact()
            ),
        },
        "numerics": {
            "diverged": False,
            "amp_skipped_steps": getattr(trainer, "skipped_steps", 0),
            **({"zero_norm": trainer.zero_norm} if getattr(trainer, "zero_norm", None) else {}),
        },
        "data": describe_data(trainer),
        "model": describe_model(trainer),
        "metrics": dict(metrics),
        "history": list(getattr(trainer, "history", [])),
        "gates": {"per_epoch": trainer.gates} if getattr(trainer, "gates", None) else None,
        "notes": dict(getattr(trainer, "notes", {})),
        "timing": with_data_share(timing),
        "memory": peak_memory(),
    }


def overrides_of(cfg: Any, files_cfg: Any) -> dict[str, Any]:
    """The settings that the command line changed, of those that decide numbers and are told nowhere else.

    Args:
        cfg: the run's configuration.
        files_cfg: the same without the command line: the defaults and the files.
    """
    files = deciding_settings(plain_config(files_cfg))
    return {
        key: value
        for key, value in deciding_settings(plain_config(cfg)).items()
        if key not in files or files[key] != value
    }


def with_data_share(timing: Mapping[str, Any]) -> dict[str, Any]:
    """The seconds by phase and, for runs that trained, the loader's share of the training time."""
    train = timing.get("train", 0.0)
    return {**timing, **({"data_share": timing["data"] / train} if train and "data" in timing else {})}


def guess_protocol(train_classes: str, splits: Sequence[str]) -> str:
    """The protocol that a set of class splits amounts to, where ``TEST.PROTOCOL`` does not say."""
    if train_classes == "base":
        return "open_world" if "all" in splits else "base_to_new"
    return "few_shot"


def selection_rule(cfg: Any) -> str:
    """How the evaluated epoch was chosen; never on test data."""
    if cfg.TEST.FINAL_MODEL != "best_val":
        return "last epoch"
    patience = f", stopping after {cfg.TRAIN.PATIENCE} epochs without gain" if cfg.TRAIN.get("PATIENCE", 0) else ""
    return f"best epoch on the few-shot validation set{patience}"


def precision_of(trainer: Any) -> str:
    """What it computed in and, if that is something else, what was asked for; "fp32" for trainers that do not say."""
    precision = getattr(trainer, "precision", None)
    return str(precision) if hasattr(precision, "name") else "fp32"


def describe_data(trainer: Any) -> dict[str, Any]:
    """Data set facts that let a reader check that two runs saw the same images."""
    dataset, dm = trainer.dm.dataset, trainer.dm
    split_path = getattr(dataset, "split_path", None)
    return {
        "split_file": os.path.basename(split_path) if split_path else None,
        "split_sha256": getattr(dataset, "split_sha256", None),
        "fewshot_sha256": getattr(dataset, "fewshot_sha256", None),
        "num_train": 0 if getattr(dataset, "test_only", False) else len(dataset.train_x or []),
        "num_val": len(dataset.val or []),
        "num_test": len(dataset.test or []),
        "classnames": list(dataset.classnames),
        "image_decoding": describe_decoding(dm.test_loader.dataset),
        "transform_train": str(dm.train_loader_x.dataset.transform),
        "transform_train_done_by": describe_transforming(dm.train_loader_x),
        "transform_test": str(dm.test_loader.dataset.transform),
    }


def describe_decoding(images: Any) -> str:
    """How image files were decoded, size and orientation: part of the exact transform."""
    least = getattr(images, "draft_size", None)
    size = f"JPEG at 1, 1/2, 1/4 or 1/8 size, at least {least[0]}x{least[1]}" if least else "full size"
    return f"{size}, turned upright by EXIF" if getattr(images, "exif_orientation", False) else size


def describe_transforming(loader: Any) -> str:
    """What computes the training transform; the images are the same."""
    on_device = getattr(loader, "on_device", None)
    return f"loader (crops), {on_device.device.type} (the rest)" if on_device else "loader"


def describe_model(trainer: Any) -> dict[str, Any]:
    """The trained tensors of all registered models, and a fingerprint of the frozen weights."""
    shapes: dict[str, list[int]] = {}
    for name in trainer.get_model_names():
        for tensor_name, tensor in trainer._models[name].named_parameters():
            if tensor.requires_grad:
                shapes[f"{name}.{tensor_name}"] = list(tensor.shape)
    total = sum(_product(shape) for shape in shapes.values())
    frozen = getattr(trainer, "backbone_sha256", None)
    return {"trainable_parameters": total, "trainable_tensors": shapes, "backbone_sha256": frozen}


def _product(shape: list[int]) -> int:
    total = 1
    for size in shape:
        total *= size
    return total
