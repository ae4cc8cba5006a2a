"""Which files a run reads: the data set's config, and the setting of a trainer that a protocol was published with."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dassl.config import YamlFileError, read_config
from results.schema import OWN_DATA, dataset_label
from sweeping.protocols import BUNDLED, BUNDLED_SOURCE, BUNDLED_TARGETS, PROTOCOLS, SETTING_SUFFIXES, Protocol

REPOSITORY = Path(__file__).resolve().parent.parent
DATASET_CONFIGS = REPOSITORY / "configs" / "datasets"
TRAINER_CONFIGS = REPOSITORY / "configs" / "trainers"
BUNDLED_ROOT = "assets"
# What a method needs beside its own node: CoPrompt two views of an image.
NEEDED_KEYS = ("DATALOADER.K_TRANSFORMS",)

# Where several settings fit, the one the published tables were made with; by the suffix of the protocol's settings.
PREFERRED = {
    ("CoOp", ""): "vit_b16_ctxv1",
    ("CoOp", "_cross_datasets"): "vit_b16_ctxv1",
    ("CoOp", "_few_shot"): "vit_b16",
    ("CoCoOp", ""): "vit_b16_c4_ep10_batch1_ctxv1",
    ("CoCoOp", "_cross_datasets"): "vit_b16_c4_ep10_batch1_ctxv1",
    ("CoCoOp", "_few_shot"): "vit_b16_c4_ep10_batch1_ctxv1",
    ("IVLP", ""): "vit_b16_c2_ep5_batch4_2+2ctx",
    ("IVLP", "_cross_datasets"): "vit_b16_c2_ep5_batch4_2+2ctx",
    ("IVLP", "_few_shot"): "vit_b16_c2_ep5_batch4_2+2ctx",
}
# Data sets on which PromptSRC's few-shot setting averages its prompts over other epochs.
GPA45 = ("stanford_cars", "oxford_flowers", "fgvc_aircraft", "dtd", "eurosat")


@dataclass(frozen=True)
class Setting:
    """A setting as the tables call it, and the file that one of its runs reads.

    They differ where a method's authors train differently per data set or number of shots: that is one row of a table.
    """

    name: str
    file: str


class SweepError(ValueError):
    """A sweep that cannot be: the message says what to change."""


def is_bundled(dataset: str) -> bool:
    """Whether the data set comes with the repository and goes with the bundled model's settings."""
    return dataset == "digits" or dataset.startswith("emoji")


def bundled_datasets() -> tuple[str, ...]:
    """The bundled data sets that are there, by config name."""
    return tuple(sorted(path.stem for path in DATASET_CONFIGS.glob("*.yaml") if is_bundled(path.stem)))


def bundled_plan(protocol: Protocol, source: str) -> tuple[tuple[str, ...], str]:
    """The bundled data sets that stand in for a protocol's, and the one to train on ("" where each trains its own).

    Args:
        protocol: which experiment.
        source: the data set that the user wants to train on; "": the bundled one made for it.

    Raises:
        SweepError: a transfer protocol without the bundled data it needs.
    """
    there = bundled_datasets()
    if not protocol.source:
        return tuple(name for name in BUNDLED if name in there), ""
    source = source or BUNDLED_SOURCE
    styles = protocol.name == "domain_generalization"
    targets = tuple(name for name in there if (name.startswith(f"{source}_") if styles else name in BUNDLED_TARGETS))
    if source not in there or not targets:
        raise SweepError(
            f"{protocol.name} on bundled data needs configs/datasets/{source}.yaml and data sets to test on, which are "
            "not there: give real data with --root and --datasets"
        )
    return (source, *targets), source


def dataset_file(dataset: str) -> Path:
    """The config file of a data set, given by its name or as a path of its own.

    Raises:
        SweepError: there is none; names the ones there are.
    """
    path = Path(dataset) if dataset.endswith((".yaml", ".yml")) else DATASET_CONFIGS / f"{dataset}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(path.stem for path in DATASET_CONFIGS.glob("*.yaml")))
        raise SweepError(f"data set {dataset!r}: no file {_shown(path)}; there are: {known}")
    return path


@functools.cache
def data_section(dataset: str) -> dict[str, Any]:
    """The section DATASET of a data set's config file.

    Raises:
        SweepError: no such file, or it names no data set.
    """
    path = dataset_file(dataset)
    try:
        section = read_config(path)["DATASET"]
        return {**section, "NAME": str(section["NAME"])}
    except YamlFileError as error:
        raise SweepError(str(error)) from error
    except (KeyError, TypeError) as error:
        raise SweepError(f"{_shown(path)} names no data set (DATASET: NAME: ...)") from error


def label_of(dataset: str, root: str = "", pairs: Sequence[str] = ()) -> str:
    """What results.json calls a data set.

    Args:
        dataset: config name, or path of a config file.
        root: the data root.
        pairs: KEY VALUE pairs of the command line, which go before the file.
    """
    given = {key.removeprefix("DATASET."): value for key, value in zip(pairs[::2], pairs[1::2], strict=False)}
    return dataset_label({**data_section(dataset), **given}, root)


def folder_of(dataset: str, root: str = "", pairs: Sequence[str] = ()) -> str:
    """What a data set is called in output paths: as its config file; by its label where that is folder or csv."""
    name = dataset_file(dataset).stem
    return label_of(dataset, root, pairs) if name in OWN_DATA else name


def setting_file(trainer: str, setting: str) -> Path:
    """The config file of a trainer's setting.

    Raises:
        SweepError: unknown trainer or setting; names the ones there are.
    """
    path = TRAINER_CONFIGS / trainer / f"{setting}.yaml"
    if not path.is_file():
        raise SweepError(f"{trainer} has no setting {setting!r}; there are: {', '.join(settings_of(trainer))}")
    return path


def settings_of(trainer: str) -> list[str]:
    """All settings of a trainer.

    Raises:
        SweepError: no folder of that name under configs/trainers.
    """
    names = sorted(path.stem for path in (TRAINER_CONFIGS / trainer).glob("*.yaml"))
    if not names:
        known = ", ".join(sorted(path.name for path in TRAINER_CONFIGS.iterdir() if path.is_dir()))
        raise SweepError(f"no settings under configs/trainers for trainer {trainer!r}; there are: {known}")
    return names


def default_setting(trainer: str, protocol: Protocol, bundled: bool) -> str:
    """The setting to run where the user names none.

    The protocol's own settings are told by their suffix; a trainer without one uses its base-to-new setting.

    Raises:
        SweepError: none fits, or several do.
    """
    names = settings_of(trainer)
    preferred = PREFERRED.get((trainer, protocol.setting_suffix))
    if not bundled and preferred in names:
        return preferred
    prefix = "tiny" if bundled else "vit_b16"
    pool = [name for name in names if name.startswith("tiny") == bundled]
    pool = [name for name in pool if name.startswith(prefix)] or pool
    own = [name for name in pool if protocol.setting_suffix and protocol.setting_suffix in name]
    others = [name for name in pool if not any(suffix in name for suffix in SETTING_SUFFIXES)]
    return _only(trainer, own or others, prefix)


def _only(trainer: str, candidates: Sequence[str], prefix: str) -> str:
    """The one candidate, or the one that all others are variants of."""
    stems = [name for name in candidates if all(other.startswith(name) for other in candidates)]
    if stems:
        return stems[0]
    if candidates:
        raise SweepError(f"{trainer} has several settings: say {trainer}=SETTING with one of {', '.join(candidates)}")
    raise SweepError(f"{trainer} has no setting {prefix}*: write configs/trainers/{trainer}/{prefix}_....yaml")


def published_setting(trainer: str, protocol: Protocol, dataset: str, shots: int) -> Setting:
    """The setting to run where the user names none, with the file for this data set and number of shots.

    Args:
        trainer: a folder under configs/trainers.
        protocol: which experiment.
        dataset: config name of the data set trained on.
        shots: images per class.

    Raises:
        SweepError: none fits, or several do.
    """
    name = default_setting(trainer, protocol, is_bundled(dataset))
    own = f"{name}_{dataset}"
    if trainer == "CoOp" and not is_bundled(dataset):
        return Setting(name, _coop_file(name, protocol, dataset, shots))
    if trainer == "PromptSRC" and name.endswith("_few_shot") and dataset in GPA45:
        own = f"{name}_gpa45"
    return Setting(name, own if own in settings_of(trainer) else name)


def _coop_file(name: str, protocol: Protocol, dataset: str, shots: int) -> str:
    """CoOp trains 200 epochs; 50 on ImageNet; in few-shot curves 50 at one shot and 100 at two and four."""
    shots = shots if protocol.name == "few_shot" else 16
    short = "_ep50" if dataset == "imagenet" or shots == 1 else "_ep100" if shots <= 4 else ""
    return name.replace("vit_b16", f"vit_b16{short}", 1)


def setting_options(trainer: str, bundled: bool) -> tuple[str, list[str]]:
    """A setting's name and what it sets of the method, in float32: keys and values for benchmarks on a random CLIP.

    Args:
        trainer: "NAME", or "NAME=SETTING" for another than the base-to-new setting.
        bundled: of the bundled model.

    Raises:
        SweepError: no such trainer or setting.
    """
    name, _, setting = trainer.partition("=")
    setting = setting or default_setting(name, PROTOCOLS["open_world"], bundled)
    content = read_config(setting_file(name, setting))
    pairs = {key: value for key, value in _flat(content) if key.startswith("TRAINER.") or key in NEEDED_KEYS}
    pairs |= {key: "fp32" for key in pairs if key.endswith(".PREC")}
    return setting, [text for key, value in pairs.items() for text in (key, str(value))]


def _flat(node: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in node.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _shown(path: Path) -> str:
    return str(path.relative_to(REPOSITORY)) if path.is_relative_to(REPOSITORY) else str(path)
