"""What a sweep runs: protocols, each method's settings and the tables as data, and the queue of runs that they make.

Base-to-new, cross-dataset and domain generalization: Zhou et al., CoCoOp, CVPR 2022, https://arxiv.org/abs/2203.05557;
few-shot: Zhou et al., CoOp, IJCV 2022, https://arxiv.org/abs/2109.01134; open-world: Lv et al., BMIP, IJCAI 2025.
"""

from __future__ import annotations

import functools
import itertools
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from common.free_options import flatten
from dassl.config import YamlFileError, read_config
from results.schema import OWN_DATA, REPOSITORY, dataset_label

DATASET_CONFIGS = REPOSITORY / "configs" / "datasets"
TRAINER_CONFIGS = REPOSITORY / "configs" / "trainers"


class SweepError(ValueError):
    """A sweep that cannot be: the message says what to change."""


# Data sets, by the names of configs/datasets/<name>.yaml.
ELEVEN = (
    *("imagenet", "caltech101", "oxford_pets", "stanford_cars", "oxford_flowers", "food101"),
    *("fgvc_aircraft", "sun397", "dtd", "eurosat", "ucf101"),
)
IMAGENET_VARIANTS = ("imagenetv2", "imagenet_sketch", "imagenet_a", "imagenet_r")
# What stands in for them on the bundled model. Transfer trains on the first drawing style of the kinds of emoji, whose
# other styles are files named after it; digits and concepts are other data sets.
BUNDLED = ("digits",)
BUNDLED_SOURCE = "emoji_kinds"
BUNDLED_TARGETS = ("digits", "emoji_concepts")
BUNDLED_ROOT = REPOSITORY / "assets"
# The benchmark in miniature, on the bundled model that knows icons; transfer trains on the objects.
MINI_SOURCE = "mini_objects"
MINI = (
    *(MINI_SOURCE, "mini_vehicles", "mini_devices", "mini_places", "mini_animals", "mini_food", "mini_sports"),
    *("mini_arrows", "mini_digits"),
)

# ---- protocols

LAYOUT = "{protocol}/{trainer}/{setting}/{dataset}/shots{shots}/seed{seed}"
# Where CoOp's two-step scripts write, so that its users' other tools find the logs.
COOP_TRAIN_LAYOUT = "base2new/train_base/{dataset}/shots_{shots}/{trainer}/{setting}/seed{seed}"
COOP_TEST_LAYOUT = "base2new/test_new/{dataset}/shots_{shots}/{trainer}/{setting}/seed{seed}"
TRANSFER_WEIGHTS = "cross_dataset/{trainer}/{setting}/{source}/shots{shots}/seed{seed}"


@dataclass(frozen=True)
class Protocol:
    """One protocol of the papers."""

    name: str  # as in results.json and in the tables
    train_classes: str = "all"  # or "base"
    splits: tuple[str, ...] = ("all",)  # class splits to test on
    shots: tuple[int, ...] = (16,)  # training images per class; several make a curve
    datasets: tuple[str, ...] = ELEVEN  # of the published table
    settings: str = "base"  # which of a method's settings it takes; a key of the rows of `SETTINGS`
    layout: str = LAYOUT  # a run's folder below the output folder
    source: str = ""  # data set that is trained on once, the others being only tested; "": every one is trained on
    weights_layout: str = ""  # where the weights lie that are tested without training; "": the run trains them


_OPEN_WORLD = Protocol("open_world", "base", ("base", "new", "all"))
_TRANSFER = Protocol("cross_dataset", settings="cross_datasets", source="imagenet", weights_layout=TRANSFER_WEIGHTS)

# By the name that sweep.py takes; two of them are the halves of base_to_new, as CoOp's scripts split it.
PROTOCOLS: Mapping[str, Protocol] = {
    "open_world": _OPEN_WORLD,
    "base_to_new": Protocol("base_to_new", "base", ("base", "new")),
    "base2new_train": Protocol("base_to_new", "base", ("base",), layout=COOP_TRAIN_LAYOUT),
    "base2new_test": Protocol(
        "base_to_new", "base", ("base", "new"), layout=COOP_TEST_LAYOUT, weights_layout=COOP_TRAIN_LAYOUT
    ),
    "few_shot": Protocol("few_shot", shots=(1, 2, 4, 8, 16), settings="few_shot"),
    "cross_dataset": _TRANSFER,
    # The model is cross-dataset transfer's: ImageNet is trained on once for both.
    "domain_generalization": replace(
        _TRANSFER, name="domain_generalization", datasets=("imagenet", *IMAGENET_VARIANTS)
    ),
    "zero_shot": Protocol("zero_shot"),
    # open_world in an output folder that holds nothing else: scripts/demo.sh and scripts/compare.sh
    "compare": replace(_OPEN_WORLD, layout=LAYOUT.removeprefix("{protocol}/")),
}

# ---- each method's settings

# Files of configs/trainers/<method>: on the bundled model, and those of the published tables on ViT-B/16. "base" stands
# where a method has none of the protocol's, which is named here or as "base" with the protocol's word behind. In
# miniature each has the only mini_*.yaml. In the order in which the methods appeared.
SETTINGS: Mapping[str, Mapping[str, str]] = {
    "ZeroshotCLIP": {"tiny": "tiny", "base": "vit_b16"},
    "ZeroshotCLIP2": {"tiny": "tiny", "base": "vit_b16"},
    "CoOp": {"tiny": "tiny_c4_ep50_batch32", "base": "vit_b16_ctxv1", "few_shot": "vit_b16"},
    "CoCoOp": {"tiny": "tiny_c4_ep10_batch1_ctxv1", "base": "vit_b16_c4_ep10_batch1_ctxv1"},
    "ProDA": {"tiny": "tiny_c16_ep20_batch4", "base": "vit_b16_c2_e100_ctx16_warmup5_BZ64_ProDA"},
    "KgCoOp": {"tiny": "tiny_c4_ep100_batch128_ctxv1", "base": "vit_b16_ep100_ctxv1"},
    "VPT": {"tiny": "tiny_c2_ep10_batch4_8ctx", "base": "vit_b16_c2_ep5_batch4_4"},
    "IVLP": {"tiny": "tiny_c2_ep10_batch4_2+2ctx", "base": "vit_b16_c2_ep5_batch4_2+2ctx"},
    "MaPLe": {"tiny": "tiny_c2_ep10_batch4_2ctx", "base": "vit_b16_c2_ep5_batch4_2ctx"},
    "PromptSRC": {
        "tiny": "tiny_c2_ep20_batch4_4+4ctx",
        "base": "vit_b16_c2_ep20_batch4_4+4ctx",
        "few_shot": "vit_b16_c2_ep50_batch4_4+4ctx_few_shot",
    },
    "ProGrad": {
        "tiny": "tiny_c4_ep50_batch32",
        "base": "vit_b16_ep100",
        "few_shot": "vit_b16",
        "cross_datasets": "vit_b16_ep50",
    },
    "CoPrompt": {"tiny": "tiny_c2_ep8_batch4_2ctx", "base": "coprompt"},
    "TCP": {"tiny": "tiny_c4_ep50_batch32", "base": "vit_b16_c4_ep50_batch32"},
    "MMA": {"tiny": "tiny_ep10_batch16", "base": "vit_b16_ep5", "cross_datasets": "vit_b16_ep1_cross_datasets"},
    "CoOp_DePT": {"tiny": "tiny_c4_ep10_batch4", "base": "vit_b16_ep10_bs4_lr35"},
    "PromptSRC_DePT": {"tiny": "tiny_c2_ep20_batch4_4+4ctx", "base": "vit_b16_c2_ep20_batch4_4+4ctx"},
    "MMRL": {"tiny": "tiny_5tok_ep10_batch4", "base": "vit_b16"},
    "MMRLpp": {"tiny": "tiny_5tok_ep10_batch4", "base": "vit_b16"},
    "HiCroPL": {
        "tiny": "tiny_c2_ep50_batch32_16ctx",
        "base": "vit_b16_c2_ep50_batch32_16ctx",
        "cross_datasets": "vit_b16_c2_ep5_batch32_2ctx_cross_datasets",
    },
    "CLIP_LoRA": {"tiny": "tiny_ep50_batch32", "base": "vit_b16"},
    "LayerNormTuning": {"tiny": "tiny_ep50_batch32", "base": "vit_b16"},
    "TwoStage": {"tiny": "tiny_ep50_batch32", "base": "vit_b16"},
    "PromptKD": {
        "tiny": "tiny_c2_ep20_batch8_4+4ctx",
        "base": "vit_b16_c2_ep20_batch8_4+4ctx",
        "cross_datasets": "vit_b16_c2_ep20_batch8_4+4ctx_cross_datasets",
    },
    "TaskRes": {"tiny": "tiny_ep200_batch256", "base": "vit_b16_ep200"},
    "CLIP_Adapter": {"tiny": "tiny_ep200_batch32", "base": "vit_b16"},
    "TipAdapter": {"tiny": "tiny", "base": "vit_b16"},
    "TipAdapterF": {"tiny": "tiny_ep20_batch256", "base": "vit_b16"},
    "LinearProbe": {"tiny": "tiny", "base": "vit_b16"},
    "CLAP": {"tiny": "tiny_ep300_batch256", "base": "vit_b16_ep300"},
    "LPPlusPlus": {"tiny": "tiny", "base": "vit_b16"},
    "BMIP": {
        "tiny": "tiny_c2_ep10_batch4_2ctx",
        "base": "vit_b16_c2_ep10_batch4_2ctx",
        "cross_datasets": "vit_b16_c2_ep4_batch4_2ctx_cross_datasets",
    },
    "MaPLe_BMIP": {"tiny": "tiny_c2_ep10_batch4_2ctx", "base": "vit_b16_c2_ep5_batch4_2ctx"},
    "PromptSRC_BMIP": {"tiny": "tiny_c2_ep20_batch4_4+4ctx", "base": "vit_b16_c2_ep20_batch4_4+4ctx"},
    "CoPrompt_BMIP": {"tiny": "tiny_c2_ep8_batch4_2ctx", "base": "coprompt"},
}
# Data sets on which PromptSRC's few-shot setting averages its prompts over other epochs.
GPA45 = ("stanford_cars", "oxford_flowers", "fgvc_aircraft", "dtd", "eurosat")
# Trainers without anything to learn: every seed gives the same numbers, so one is run.
UNTRAINED = ("ZeroshotCLIP", "ZeroshotCLIP2")
# Trainers that are fitted without steps of an optimiser: they have no learning rate, epochs or batches.
FITTED = ("TipAdapter", "LinearProbe", "LPPlusPlus")
# Trainers that learn from a finished run, which has to be named: "all" leaves them out.
TAUGHT = ("PromptKD",)
# Trainers of classifiers that know no class beside those that they were trained on.
OWN_CLASSES = ("LinearProbe", "LPPlusPlus")
# The config node that sets the depth and the length of a method's prompts.
PROMPT_NODES = {"MaPLe": "MAPLE", "CoPrompt": "COPROMPT"} | dict.fromkeys(
    ("BMIP", "MaPLe_BMIP", "PromptSRC_BMIP", "CoPrompt_BMIP"), "BMIP"
)


@dataclass(frozen=True)
class Table:
    """A table of the papers: its protocol, the methods in it, and for ablations what is varied."""

    protocol: str
    trainers: tuple[str, ...] = ()
    # By option of sweep.py, a configuration key ({node}: the method's of `PROMPT_NODES`), its values, and those for the
    # bundled model, whose towers have four layers, where they differ.
    axes: Mapping[str, tuple[str, Sequence[str], Sequence[str]]] = field(default_factory=dict)
    datasets: tuple[str, ...] = ()
    output: str = "output"
    report: tuple[str, ...] = ()  # options of `python -m reporting table`


_COMPARED = ("ZeroshotCLIP", "CoOp", "CoCoOp", "MaPLe", "PromptSRC", "BMIP")
_BASE_TO_NEW = (*_COMPARED[:3], "ProDA", "KgCoOp", *_COMPARED[3:])
_AGGREGATORS = ("gate", "add", "mean", "joint", "own", "text_to_vision", "vision_to_text")


def _ablation(**axes: tuple[str, Sequence[str], Sequence[str]]) -> Table:
    return Table("open_world", ("BMIP",), axes)


TABLES: Mapping[str, Table] = {
    "open_world": Table("open_world", _BASE_TO_NEW),
    "calibration": Table("open_world", _BASE_TO_NEW, report=("--metrics", "ece,ece_scaled,nll")),
    # and those whose papers are about it: heads on features, and changes of weights
    "few_shot_curve": Table("few_shot", (*_COMPARED, "LinearProbe", "TipAdapterF", "CLAP", "CLIP_LoRA", "TwoStage")),
    "cross_dataset": Table("cross_dataset", _COMPARED),
    "domain_generalization": Table("domain_generalization", _COMPARED),
    "combinations": Table(
        "open_world",
        ("MaPLe", "MaPLe_BMIP", "PromptSRC", "PromptSRC_BMIP", "CoPrompt", "CoPrompt_BMIP", "HiCroPL", "BMIP"),
    ),
    "ablation_aggregation": _ablation(aggregators=("TRAINER.BMIP.AGGREGATOR", _AGGREGATORS, ())),
    "ablation_depth": _ablation(
        depths=("TRAINER.{node}.PROMPT_DEPTH", ("1", "3", "6", "9", "12"), ("1", "2", "3", "4"))
    ),
    "ablation_length": _ablation(lengths=("TRAINER.{node}.N_CTX", ("1", "2", "4", "6", "8"), ())),
    "ablation_sharing": _ablation(
        share_text=("TRAINER.BMIP.SHARE_PARAMETER_TEXT", ("True", "False"), ()),
        share_visual=("TRAINER.BMIP.SHARE_PARAMETER_VISUAL", ("True", "False"), ()),
    ),
    "compare": Table("compare", output="output/compare"),
    "demo": Table(
        "compare",
        ("ZeroshotCLIP", "CoOp", "MaPLe", "BMIP"),
        datasets=("mini_vehicles", "mini_digits"),
        output="output/demo",
        report=("--group", "dataset", "--metrics", "base,new,H,average_H,openworld_auc"),
    ),
}

# Keys that differ from run to run, with the option of sweep.py that sets them.
OF_A_RUN = {
    "OUTPUT_DIR": "--output",
    "SEED": "--seeds",
    "RESUME": "the same command again: it goes on by itself",
    "DATASET.ROOT": "--root",
    "DATASET.NAME": "--datasets",
    "TRAINER.NAME": "--trainers",
}

# ---- which files a run reads


def is_mini(dataset: str) -> bool:
    """Whether the data set is of the benchmark in miniature."""
    return dataset.startswith("mini_")


def is_bundled(dataset: str) -> bool:
    """Whether the data set comes with the repository and goes with a bundled model's settings."""
    return dataset == "digits" or dataset.startswith("emoji") or is_mini(dataset)


def bundled_plan(protocol: Protocol, source: str, mini: bool = False) -> tuple[tuple[str, ...], str]:
    """The bundled data sets that stand in for a protocol's, and the one to train on ("" where each trains its own)."""
    there = sorted(path.stem for path in DATASET_CONFIGS.glob("*.yaml") if is_bundled(path.stem))
    if not protocol.source:
        return tuple(name for name in (MINI if mini else BUNDLED) if name in there), ""
    source, others = source or (MINI_SOURCE if mini else BUNDLED_SOURCE), MINI if mini else BUNDLED_TARGETS
    styles = protocol.name == "domain_generalization"
    targets = tuple(
        name for name in there if (name.startswith(f"{source}_") if styles else name in others and name != source)
    )
    if source not in there or not targets:
        raise SweepError(
            f"{protocol.name} on bundled data needs configs/datasets/{source}.yaml and data sets to test on, which are "
            "not there: give real data with --root and --datasets"
        )
    return (source, *targets), source


def present_datasets(root: str) -> tuple[str, ...]:
    """The published data sets whose folders are under a data root; a SweepError where there is none."""
    from datasets.sources import known_datasets

    folders = {name: known_datasets()[data_section(name)["NAME"]].folder for name in (*ELEVEN, *IMAGENET_VARIANTS)}
    there = tuple(name for name, folder in folders.items() if root and (Path(root).expanduser() / folder).is_dir())
    if not there:
        where = f"of the published data sets under {root}" if root else "without --root, the folder of all data sets"
        raise SweepError(f"--datasets present: there is none {where}; docs/datasets.md says how to get them")
    return there


def dataset_file(dataset: str) -> Path:
    """The config file of a data set, given by its name or as a path; a SweepError names the ones there are."""
    path = Path(dataset) if dataset.endswith((".yaml", ".yml")) else DATASET_CONFIGS / f"{dataset}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(path.stem for path in DATASET_CONFIGS.glob("*.yaml")))
        raise SweepError(f"data set {dataset!r}: no file {_relative(path)}; there are: {known}")
    return path


@functools.cache
def data_section(dataset: str) -> dict[str, Any]:
    """The section DATASET of a data set's config file; a SweepError where it names no data set."""
    path = dataset_file(dataset)
    try:
        section = read_config(path)["DATASET"]
        return {**section, "NAME": str(section["NAME"])}
    except YamlFileError as error:
        raise SweepError(str(error)) from error
    except (KeyError, TypeError) as error:
        raise SweepError(f"{_relative(path)} names no data set (DATASET: NAME: ...)") from error


def setting_file(trainer: str, setting: str) -> Path:
    """The config file of a trainer's setting; a SweepError names the ones there are."""
    names = settings_of(trainer)
    if setting not in names:
        raise SweepError(f"{trainer} has no setting {setting!r}; there are: {', '.join(names)}")
    return TRAINER_CONFIGS / trainer / f"{setting}.yaml"


def settings_of(trainer: str) -> list[str]:
    """All settings of a trainer; a SweepError names the trainers that have any."""
    known = sorted(path.name for path in TRAINER_CONFIGS.iterdir() if path.is_dir())
    names = sorted(path.stem for path in (TRAINER_CONFIGS / trainer).glob("*.yaml")) if trainer in known else []
    if not names:
        raise SweepError(f"no settings under configs/trainers for trainer {trainer!r}; there are: {', '.join(known)}")
    return names


def default_setting(trainer: str, protocol: Protocol, dataset: str) -> str:
    """The setting to run where the user names none: that of `SETTINGS`; of another trainer, the only one that fits.

    Files are told by their names: tiny* and mini* are for the bundled models, *_cross_datasets and *_few_shot for these
    protocols. A SweepError where none fits, or several do.
    """
    names, row = settings_of(trainer), SETTINGS.get(trainer, {})
    base, prefix = row.get("base", ""), "mini" if is_mini(dataset) else "tiny" if is_bundled(dataset) else "vit_b16"
    listed = (row.get(prefix),)
    if prefix == "vit_b16":
        listed = (row.get(protocol.settings), f"{base}_{protocol.settings}", base)
    for name in listed:
        if name in names:
            return name
    pool = [name for name in names if name.startswith(prefix)]
    if prefix == "vit_b16":
        pool = pool or [name for name in names if not name.startswith(("tiny", "mini"))]
    others = [name for name in pool if not any(word in name for word in ("_cross_datasets", "_few_shot"))]
    fitting = [name for name in pool if f"_{protocol.settings}" in name] or others
    # the one candidate, or the one that all others are variants of
    for name in fitting:
        if all(other.startswith(name) for other in fitting):
            return name
    if fitting:
        raise SweepError(f"{trainer} has several settings: say {trainer}=SETTING with one of {', '.join(fitting)}")
    raise SweepError(f"{trainer} has no setting {prefix}*: write configs/trainers/{trainer}/{prefix}_....yaml")


class Setting(NamedTuple):
    """A setting; name and file differ where a method's authors train differently per data set or number of shots."""

    name: str  # as the tables call it, in one row
    file: str  # that one of its runs reads


def published_setting(trainer: str, protocol: Protocol, dataset: str, shots: int) -> Setting:
    """The setting to run where the user names none (see `default_setting`), with the file for a data set and shots."""
    name = default_setting(trainer, protocol, dataset)
    file = f"{name}_{dataset}"
    if trainer in ("CoOp", "ProGrad", "CLIP_Adapter") and not is_bundled(dataset):
        # as the setting has them; 50 on ImageNet; in few-shot curves 50 at one shot and 100 at two and four
        curve = shots if protocol.name == "few_shot" else 16
        epochs = "_ep50" if dataset == "imagenet" or curve == 1 else "_ep100" if curve <= 4 else ""
        file = re.sub(r"^vit_b16(_ep\d+)?", f"vit_b16{epochs}", name) if epochs else name
    elif trainer == "TaskRes" and protocol.name == "few_shot" and shots <= 4 and not is_bundled(dataset):
        fewer = name.replace("_ep200", "_ep100")
        file = f"{fewer}_{dataset}" if f"{fewer}_{dataset}" in settings_of(trainer) else fewer
    elif trainer == "PromptSRC" and name.endswith("_few_shot") and dataset in GPA45:
        file = f"{name}_gpa45"
    return Setting(name, file if file in settings_of(trainer) else name)


def setting_options(trainer: str, bundled: bool) -> tuple[str, list[str]]:
    """A setting's name and what it sets of the method, in float32: keys and values for benchmarks on a random CLIP.

    The trainer is "NAME", or "NAME=SETTING" for another than the base-to-new setting.
    """
    name, _, setting = trainer.partition("=")
    setting = setting or default_setting(name, PROTOCOLS["open_world"], "digits" if bundled else "imagenet")
    options = []
    for key, value in flatten(read_config(setting_file(name, setting))).items():
        if key.startswith("TRAINER.") or key == "DATALOADER.K_TRANSFORMS":  # CoPrompt takes two views of an image
            options += [key, "fp32" if key.endswith(".PREC") else str(value)]
    return setting, options


def _relative(path: Path) -> str:
    """A path as short as it can be typed where the sweep is started, which is where its runs are as well."""
    path = path.resolve()
    inside = Path.cwd() == REPOSITORY and path.is_relative_to(REPOSITORY)
    return str(path.relative_to(REPOSITORY)) if inside else str(path)


# ---- the queue


@dataclass(frozen=True)
class Job:
    """One run: one call of train.py, with an output folder of its own."""

    trainer: str
    setting: str
    dataset: str  # by its config name
    shots: int
    seed: int
    folder: Path  # where it writes
    arguments: tuple[str, ...]  # of train.py
    needs: Path | None = None  # folder of the run whose weights it tests; None: it trains
    program: str = "train.py"  # in tests another
    protocol: str = ""  # whose table it belongs to, as in results.json

    @property
    def label(self) -> str:
        return f"{self.trainer} {self.setting} {self.dataset} {self.shots} shots seed {self.seed}"

    def command(self, python: str = "python") -> list[str]:
        return [python, _relative(REPOSITORY / self.program), *self.arguments]


def as_typed(command: Sequence[str]) -> str:
    """A command line as one types it into a shell."""
    words = []
    for word in command:
        if re.search(r'["$`\\!]', word) or not word:
            word = shlex.quote(word)
        elif not re.fullmatch(r"[A-Za-z0-9_./:=+,@%-]+", word):
            word = f'"{word}"'
        words.append(word)
    return " ".join(words)


class Variation(NamedTuple):
    """A setting changed in some keys."""

    name: str = ""  # in its folder and its row
    options: tuple[str, ...] = ()


def variation_of(pairs: Sequence[tuple[str, str]]) -> Variation:
    """The variation of some keys' values, called by them; without any, the setting itself."""
    called = "_".join(f"{key.rpartition('.')[2].lower()}_{value}" for key, value in pairs)
    return Variation(called, sum(pairs, ()))


@dataclass(frozen=True)
class Plan:
    """What a sweep is asked for."""

    protocol: str | Protocol  # key of `PROTOCOLS`, or one of its own
    trainers: tuple[str, ...]  # "NAME" or "NAME=SETTING"
    datasets: tuple[str, ...] = ()  # config names, or paths of config files; empty: the published table's
    seeds: tuple[int, ...] = (1, 2, 3)  # of the few-shot samples
    shots: tuple[int, ...] = ()  # empty: the protocol's
    root: str = ""  # data root; "": the bundled data's for bundled data sets
    output: Path = Path("output")  # folder that the layout starts from
    source: str = ""  # for transfer protocols, the data set that is trained on; "": the protocol's
    variations: tuple[Variation, ...] = (Variation(),)  # of every setting; one without a name is the setting itself
    stage: str = ""  # "train", "evaluate" or "" for both
    options: tuple[str, ...] = ()  # KEY VALUE pairs, stronger than everything else
    flags: tuple[str, ...] = ()  # further options of train.py

    @property
    def is_bundled(self) -> bool:
        """Whether only bundled data sets are named."""
        return bool(self.datasets) and all(map(is_bundled, self.datasets))

    def root_of(self, dataset: str) -> str:
        """The data root of a data set; a SweepError where there is none, or no data set."""
        data_section(dataset)  # a file that cannot be read is refused before any run starts
        if not self.root and not is_bundled(dataset):
            raise SweepError(f"{dataset} needs --root: the folder that holds one folder per data set")
        return self.root or _relative(BUNDLED_ROOT)


def plans_varied(plan: Plan, axes: Sequence[Sequence[str]]) -> list[Plan]:
    """The plan with every combination of some axes' values, each axis being `KEY VALUE VALUE ...`.

    It is one plan per trainer where a key's {node} is the trainer's; a SweepError where its prompts have not one node.
    """
    for axis in axes:
        if len(axis) < 2:
            raise SweepError(f"--vary {' '.join(axis)}: give a key and its values")
    plans = []
    by_trainer = any("{node}" in axis[0] for axis in axes)
    for trainers in [(trainer,) for trainer in plan.trainers] if by_trainer else [plan.trainers]:
        name = trainers[0].partition("=")[0]
        if by_trainer and name not in PROMPT_NODES:
            key = next(axis[0] for axis in axes if "{node}" in axis[0]).rpartition(".")[2]
            raise SweepError(f"{name} has no single key for {key}; choose from {', '.join(PROMPT_NODES)}")
        keys = [axis[0].format(node=PROMPT_NODES.get(name)) for axis in axes]
        variations = []
        for values in itertools.product(*(axis[1:] for axis in axes)):
            pairs = list(zip(keys, values, strict=True))
            variations.append(variation_of(pairs))
        plans.append(replace(plan, trainers=trainers, variations=tuple(variations)))
    return plans


def serves(protocol: Protocol, trainer: str) -> bool:
    """Whether a trainer can be tested on the protocol's classes."""
    same_classes = protocol.train_classes == "all" or protocol.splits == (protocol.train_classes,)
    return trainer not in OWN_CLASSES or (same_classes and protocol.name != "cross_dataset")


def build_queue(plan: Plan) -> list[Job]:
    """All jobs in order: seed by seed, so that a whole table of one seed is there first; each folder once.

    Raises:
        SweepError: unknown trainer, setting or data set, no data root, a trainer that cannot be tested so, two runs for
            one folder, or no run.
    """
    protocol = PROTOCOLS[plan.protocol] if isinstance(plan.protocol, str) else plan.protocol
    source = protocol.source and (plan.source or protocol.source)
    jobs: dict[Path, Job] = {}
    shots_list, datasets = plan.shots or protocol.shots, plan.datasets or protocol.datasets
    cases = itertools.product(plan.seeds, shots_list, datasets, plan.trainers, plan.variations)
    for seed, shots, dataset, trainer, variation in cases:
        name, _, given = trainer.partition("=")
        if name in UNTRAINED and seed != plan.seeds[0]:
            continue
        runs = [(protocol, dataset, bool(protocol.weights_layout))]
        if source:  # the run on a target comes after the one that trains what it tests
            trains_it = dataset == source and protocol.name == "cross_dataset"
            runs = [(PROTOCOLS["cross_dataset"], source, False), *([] if trains_it else runs)]
        if name in OWN_CLASSES and "TEST.CLASS_SPLITS" not in plan.options and not serves(protocol, name):
            raise SweepError(
                f"{name} predicts the classes that it is trained on, and {protocol.name} tests on others: leave it "
                "out, or give --protocol few_shot"
            )
        for which, on, tests_only in runs:
            # what is tested was trained on the source: its setting is the one to use
            setting = Setting(given, given) if given else published_setting(name, which, source or on, shots)
            config, dataset_config = _relative(setting_file(name, setting.file)), _relative(dataset_file(on))
            pairs = (*variation.options, *plan.options)
            trained_on = dataset_file(source or on).stem  # {dataset} in a teacher's folder
            pairs = tuple(word.replace("{dataset}", trained_on) for word in pairs)
            called = "_".join(filter(None, (setting.name, variation.name)))
            source_label, source_folder = _names_of(source, plan, pairs) if source else ("", "")
            labels = {"protocol": which.name, "trainer": name, "setting": called, "shots": shots, "seed": seed}
            labels |= {"dataset": _names_of(on, plan, pairs)[1], "source": source_folder}
            folder = plan.output / which.layout.format(**labels)
            needs = plan.output / which.weights_layout.format(**labels) if tests_only else None
            arguments = (
                *("--root", plan.root_of(on), "--seed", str(seed), "--trainer", name),
                *("--config-file", config, "--dataset-config-file", dataset_config, "--output-dir", str(folder)),
                *(("--eval-only", "--model-dir", str(needs)) if needs else ()),
                *plan.flags,
                *("DATASET.NUM_SHOTS", str(shots), "DATASET.SUBSAMPLE_CLASSES", which.train_classes),
                *("TEST.CLASS_SPLITS", str(which.splits), "TEST.PROTOCOL", which.name),
                *(("TEST.SOURCE_DATASET", source_label) if source else ()),
                *(("TEST.SETTING", called) if called != setting.file else ()),
                *pairs,
            )
            job = Job(name, called, labels["dataset"], shots, seed, folder, arguments, needs, protocol=which.name)
            if jobs.setdefault(folder, job) != job:
                raise SweepError(f"two different runs would write to {folder}: name their files differently")
    queue = [job for job in jobs.values() if plan.stage in ("", "evaluate" if job.needs else "train")]
    if not queue:
        on = " ".join(plan.datasets) or "each data set"
        why = "it tests other runs' weights" if plan.stage == "train" else f"{on} is what {plan.protocol} trains on"
        raise SweepError(f"nothing to {plan.stage or 'run'} of {plan.protocol}: {why}")
    return queue


def _names_of(dataset: str, plan: Plan, pairs: Sequence[str]) -> tuple[str, str]:
    """What results.json calls a data set, and what output paths do: its file's name; the label of a user's images."""
    given = {key.removeprefix("DATASET."): value for key, value in zip(pairs[::2], pairs[1::2], strict=False)}
    label = dataset_label({**data_section(dataset), **given}, plan.root_of(dataset))
    name = dataset_file(dataset).stem
    return label, label if name in OWN_DATA else name


def check_pairs(pairs: Sequence[str]) -> None:
    """Check KEY VALUE pairs of many runs as train.py does, but for what only a whole configuration shows.

    The same key may come again.

    Raises:
        SweepError, ConfigError, ValueError: a pair that no run could use, or a key of `OF_A_RUN`.
    """
    if len(pairs) % 2:
        raise SweepError(f"options come in pairs KEY VALUE; {pairs[-1]!r} has no value")
    for key in pairs[::2]:
        if key in OF_A_RUN:
            raise SweepError(f"{key} is set for every run: use {OF_A_RUN[key]} instead")
    if not pairs:
        return
    # what defines the keys takes seconds to import, and is not needed without pairs
    import datasets  # noqa: F401
    import trainers  # noqa: F401
    from dassl.config import check_values, get_cfg_default
    from dassl.data.datasets import DATASET_REGISTRY
    from extras.trackers import check_trackers
    from prompting.tokens import check_template
    from results import evaluate, features, rundir  # noqa: F401
    from trainers.base import RANGES

    for key, value in zip(pairs[::2], pairs[1::2], strict=True):
        cfg = get_cfg_default()
        cfg.DATASET.NAME = DATASET_REGISTRY.registered_names()[0]  # each run's file names it
        cfg.merge_from_list([key, value])
        check_values(cfg, RANGES)
        check_trackers(cfg)
        if value and key.endswith(".TEMPLATE"):
            check_template(value, key)
