"""Which files a run reads: the data set's config, and the setting of a trainer that a protocol was published with."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path

import yaml

from sweeping.protocols import SETTING_SUFFIXES, Protocol

REPOSITORY = Path(__file__).resolve().parent.parent
DATASET_CONFIGS = REPOSITORY / "configs" / "datasets"
TRAINER_CONFIGS = REPOSITORY / "configs" / "trainers"
BUNDLED_ROOT = "assets"

# Where several settings fit, the one the published tables were made with; by the suffix of the protocol's settings.
PREFERRED = {
    ("CoOp", ""): "vit_b16_ep50",
    ("CoOp", "_few_shot"): "vit_b16",
    ("CoOp", "_cross_datasets"): "vit_b16_ep50",
    ("IVLP", ""): "vit_b16_c2_ep5_batch4_2+2ctx",
}


class SweepError(ValueError):
    """A sweep that cannot be: the message says what to change."""


def is_bundled(dataset: str) -> bool:
    """Whether the data set comes with the repository and goes with the bundled model's settings."""
    return dataset == "digits" or dataset.startswith("emoji")


def bundled_datasets() -> tuple[str, ...]:
    """The bundled data sets that are there, by config name."""
    return tuple(sorted(path.stem for path in DATASET_CONFIGS.glob("*.yaml") if is_bundled(path.stem)))


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
def registered_name(dataset: str) -> str:
    """The name in Dassl's registry that a data set's config file asks for, as results.json has it.

    Raises:
        SweepError: no such file, or it names no data set.
    """
    path = dataset_file(dataset)
    try:
        name = (yaml.safe_load(path.read_text(encoding="utf-8")) or {})["DATASET"]["NAME"]
    except (yaml.YAMLError, KeyError, TypeError) as error:
        raise SweepError(f"{_shown(path)} names no data set (DATASET: NAME: ...)") from error
    return str(name)


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
    own = [name for name in pool if protocol.setting_suffix and name.endswith(protocol.setting_suffix)]
    return _only(trainer, own or [name for name in pool if not name.endswith(SETTING_SUFFIXES)], prefix)


def _only(trainer: str, candidates: Sequence[str], prefix: str) -> str:
    """The one candidate, or the one that all others are variants of."""
    stems = [name for name in candidates if all(other.startswith(name) for other in candidates)]
    if stems:
        return stems[0]
    if candidates:
        raise SweepError(f"{trainer} has several settings: say {trainer}=SETTING with one of {', '.join(candidates)}")
    raise SweepError(f"{trainer} has no setting {prefix}*: write configs/trainers/{trainer}/{prefix}_....yaml")


def published_options(trainer: str, suffix: str, dataset: str, shots: int) -> tuple[str, ...]:
    """What a method's authors change per data set or number of shots, as KEY VALUE pairs.

    CoOp's few-shot curve trains 50 epochs at one shot and on ImageNet, 100 at two and four, 200 above. PromptSRC's
    averages its prompts over other epochs on five of the data sets.
    """
    if suffix != "_few_shot":
        return ()
    if trainer == "CoOp":
        epochs = 50 if shots == 1 or dataset == "imagenet" else 100 if shots <= 4 else 200
        return ("OPTIM.MAX_EPOCH", str(epochs))
    if trainer == "PromptSRC" and dataset in ("stanford_cars", "oxford_flowers", "fgvc_aircraft", "dtd", "eurosat"):
        return ("TRAINER.PROMPTSRC.GPA_MEAN", "45.0", "TRAINER.PROMPTSRC.GPA_STD", "5.0")
    return ()


def _shown(path: Path) -> str:
    return str(path.relative_to(REPOSITORY)) if path.is_relative_to(REPOSITORY) else str(path)
