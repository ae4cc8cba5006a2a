"""What runs are about: each protocol's metrics, the methods that are a table's rows, and the choice among runs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from typing import Literal

from common.commandline import printable
from reporting.stats import Summary, harmonic_mean, summarise
from results.schema import DATASETS, ResultsError, Run, canonical_dataset

MAX_NAMED = 3  # runs of each foreign protocol
MAX_LABEL = 60  # characters of a setting in a row's name
# the order in which the methods appeared; a table reads best that way
TRAINER_ORDER = (
    *("ZeroshotCLIP", "ZeroshotCLIP2", "CoOp", "CoCoOp", "ProDA", "KgCoOp", "VPT", "IVLP", "MaPLe", "PromptSRC"),
    "ProGrad",
    *("CoPrompt", "TCP", "MMA", "CoOp_DePT", "PromptSRC_DePT", "MMRL", "MMRLpp", "HiCroPL"),
    *("CLIP_LoRA", "LayerNormTuning", "TwoStage", "PromptKD"),
    *("TaskRes", "CLIP_Adapter", "TipAdapter", "TipAdapterF", "LinearProbe", "CLAP", "LPPlusPlus"),
    *("BMIP", "MaPLe_BMIP", "PromptSRC_BMIP", "CoPrompt_BMIP"),
)


def dataset_order(name: str) -> tuple[int, str]:
    """Sort key: the literature's order, then every other data set by name."""
    canonical = canonical_dataset(name)
    return DATASETS.index(canonical) if canonical in DATASETS else len(DATASETS), name


def datasets_of(runs: Iterable[Run]) -> list[str]:
    """The data sets of runs in the literature's order."""
    return sorted({run.dataset for run in runs}, key=dataset_order)


def sources_of(runs: Iterable[Run], protocol: Protocol) -> set[str]:
    """The data sets that transfer runs were trained on, over which nothing is averaged."""
    return {run.source_dataset for run in runs if protocol.columns_by == "dataset"} - {None}


def trainer_order(name: str) -> tuple[int, str]:
    """Sort key: the order in which the methods appeared, with TPT behind the plain one; then others by name."""
    trainer = name.removesuffix("+TPT")
    return TRAINER_ORDER.index(trainer) if trainer in TRAINER_ORDER else len(TRAINER_ORDER), name


def shots_text(count: int) -> str:
    """A number of shots for reading: "1 shot", "16 shots"."""
    return "1 shot" if count == 1 else f"{count} shots"


@dataclass(frozen=True)
class Metric:
    """A number of a run, or the harmonic mean of two averages."""

    key: str  # in csv and json
    label: str  # in headings
    of_run: Callable[[Run], float | None] | None = None  # in percent if `percent`; None where the run has not got it
    harmonic_of: tuple[str, str] | None = None  # instead of `of_run`: the keys of the two averaged metrics
    lower: bool = False  # whether lower is better
    percent: bool = True
    whole: bool = False  # whether it is a count, shown without decimals
    seeded: bool = False  # whether it follows from the seed even where nothing is trained
    group: str = ""  # a name by which it is chosen together with others
    legend: str = ""  # what it is, where the protocol's legend does not say it


@dataclass(frozen=True)
class Protocol:
    """A protocol's table: a block per data set, unless the data sets are the columns."""

    title: str
    columns_by: Literal["metric", "shots", "dataset"]
    metrics: tuple[Metric, ...]  # a single one where columns are shots or data sets
    legend: tuple[str, ...]  # what the columns mean, where the metrics' own legends do not say it
    on_request: tuple[Metric, ...] = ()  # metrics that are shown where they are asked for only
    also_reads: tuple[str, ...] = ()  # other protocols whose runs hold everything this table needs


def _run_harmonic_mean(run: Run) -> float | None:
    base, new = run.accuracy("base"), run.accuracy("new")
    return None if base is None or new is None else harmonic_mean(base, new)


_ALL = Metric("all", "all", lambda run: run.accuracy("all"))
# A line of the legend that several metrics share stands there once.
_ACCURACIES = (
    "base, new: accuracy on the base (new) classes' test images among the base (new) classes; trained on base."
)
_TWO_H = (
    "H: harmonic mean of the average base and the average new accuracy (the literature's convention, no deviation). "
    "avg H: average of each run's own H. The two conventions differ."
)
_ALL_CLASSES = (
    "all: accuracy over base and new test images with one softmax over all classes. open-H: harmonic mean of the base "
    "images' and the new images' accuracy there, average of each run's own."
)
_AREAS = (
    "AUROC: base against new images by the largest base-class probability. OpenworldAUC (Hua et al., ICML 2025): the "
    "share of base-new image pairs that are ranked rightly with both images classified rightly in their own group."
)
_BASE_NEW = (
    Metric("base", "base", lambda run: run.accuracy("base"), legend=_ACCURACIES),
    Metric("new", "new", lambda run: run.accuracy("new"), legend=_ACCURACIES),
    Metric("H", "H", harmonic_of=("base", "new"), legend=_TWO_H),
    Metric("average_H", "avg H", _run_harmonic_mean, legend=_TWO_H),
)
_OPEN_WORLD = (
    *_BASE_NEW,
    replace(_ALL, legend=_ALL_CLASSES),
    Metric("open_H", "open-H", lambda run: run.open_world("open_H"), legend=_ALL_CLASSES),
    Metric("auroc", "AUROC", lambda run: run.open_world("auroc"), legend=_AREAS),
    Metric("openworld_auc", "OpenworldAUC", lambda run: run.open_world("openworld_auc"), legend=_AREAS),
)
# Of results.calibration: name in results.json, label, and what it is.
_CALIBRATION = (
    ("ece", "ECE", "expected calibration error, 15 bins of equal width (Guo et al., ICML 2017)"),
    ("adaptive_ece", "adaptive ECE", "expected calibration error, 15 bins of equally many images"),
    ("mce", "MCE", "maximum calibration error, 15 bins of equal width"),
    ("nll", "NLL", "mean negative log-likelihood in nats, not in percent"),
    ("brier", "Brier", "Brier score, summed over the classes: from 0 to 2, not in percent"),
)


def _calibration(*splits: str) -> tuple[Metric, ...]:
    """The calibration metrics on class splits, without a temperature and at the validation set's."""
    metrics = []
    for (name, label, words), scaled in product(_CALIBRATION, (False, True)):
        group, shown = (f"{name}_scaled", f"{label} scaled") if scaled else (name, label)
        words = f"{words}, at the temperature that fits the few-shot validation set best" if scaled else words
        how = {"lower": True, "percent": name not in ("nll", "brier"), "legend": f"{shown}: {words}; lower is better."}
        for split in splits:
            of_run = partial(Run.calibration, split=split, name=name, scaled=scaled)
            alone = splits == ("all",)
            key, heading = (group, shown) if alone else (f"{group}_{split}", f"{shown} {split}")
            metrics.append(Metric(key, heading, of_run, seeded=scaled, group=group, **how))
    return tuple(metrics)


COST = "cost"  # the group of what a run took
# Label, of a run, and what it is.
COSTS = {
    "params": (
        *("trained parameters", lambda run: float(run.record["model"]["trainable_parameters"])),
        "numbers that training sets, those of a cache or a fitted classifier included",
    ),
    "train_seconds": (
        *("train s", lambda run: run.train_seconds),
        "seconds of training, with what it prepares and without validation and tests",
    ),
    "ms_per_image": (
        *("ms/image", lambda run: run.ms_per_image),
        "milliseconds of testing an image, reading it and its share of the text features included, mean over the class "
        "splits whose image features were not known before",
    ),
    "gflop_per_image": (
        *("GFLOP/image", lambda run: run.gflop_per_image),
        "10^9 floating-point operations of testing an image, without those of the text features, mean over the class "
        "splits whose image features were not known before",
    ),
    "peak_memory": (
        *("peak MiB", lambda run: run.peak_memory),
        "most memory that tensors took of the GPU; on a CPU, most that the process took, where the run was its first",
    ),
}
_COST = tuple(
    Metric(
        *(key, label, of_run),
        **{"lower": True, "percent": False, "whole": key == "params", "group": COST},
        legend=f"{label}: {words}; not in percent, lower is better.",
    )
    for key, (label, of_run, words) in COSTS.items()
)

# Of results.evaluate.ood_scores.
_DETECTION = {
    "union": "the largest base-class probability over base and new classes",
    "msp": "the largest probability over the base classes alone",
    "mcm": "MCM (Ming et al., NeurIPS 2022): the softmax of cosine similarities over the base classes, temperature 1",
    "energy": "energy (Liu et al., NeurIPS 2020): log-sum-exp of the base logits",
    "max_logit": "the largest base logit",
}


def _detection() -> Iterable[Metric]:
    """How well each score tells base from new images; the union's AUROC is the open-world table's."""
    words = "base against new images, base positive"
    for score, what in _DETECTION.items():
        for name, label in (("auroc", "AUROC"), ("fpr95", "FPR95"), ("aupr", "AUPR")):
            default, lower = score == "union", name == "fpr95"
            if default and name == "auroc":
                continue
            shown = score.upper() if score in ("msp", "mcm") else score.replace("_", " ")
            key, heading = (name, label) if default else (f"{name}_{score}", f"{label} {shown}")
            legend = f"{heading}: {words}, by {what}; {'lower' if lower else 'higher'} is better."
            of_run = partial(Run.detection, score=score, name=name)
            yield Metric(key, heading, of_run, lower=lower, group=key if default else score, legend=legend)


_PER_DATASET, _HAND_WRITTEN = "Accuracy over all classes of each data set", "with hand-written prompts"
_FEW_SHOT = "Columns: shots per class. Accuracy over all classes."
_ASKED = (*_calibration("all"), *_COST)

PROTOCOLS: Mapping[str, Protocol] = {
    "open_world": Protocol(
        *("Open-world generalization", "metric", _OPEN_WORLD, ()),
        on_request=(*_calibration("base", "new", "all"), *_detection(), *_COST),
    ),
    "base_to_new": Protocol(
        *("Base-to-new generalization", "metric", _BASE_NEW, ()),
        on_request=(*_calibration("base", "new"), *_COST),
        also_reads=("open_world",),
    ),
    "few_shot": Protocol("Few-shot classification", "shots", (_ALL,), (_FEW_SHOT,), _ASKED),
    "cross_dataset": Protocol("Cross-dataset transfer", "dataset", (_ALL,), (f"{_PER_DATASET}.",), _ASKED),
    "domain_generalization": Protocol("Domain generalization", "dataset", (_ALL,), (f"{_PER_DATASET}.",), _ASKED),
    "zero_shot": Protocol(
        "Zero-shot classification", "dataset", (_ALL,), (f"{_PER_DATASET}, {_HAND_WRITTEN}.",), _ASKED
    ),
}


@dataclass(frozen=True)
class Method:
    """A row: the runs that differ in data set and seed only (and, in few-shot tables, in shots)."""

    label: str
    trainer: str
    setting: str
    backbone: str
    shots: int | None
    runs: tuple[Run, ...]

    @property
    def deterministic(self) -> bool:
        return all(run.deterministic for run in self.runs)

    @property
    def selection_rule(self) -> str:
        """The rule that chose the deployed weights, or several of them."""
        return " / ".join(sorted({run.selection_rule for run in self.runs}))

    def runs_on(self, dataset: str, shots: int | None = None) -> list[Run]:
        """Its runs on a data set with so many shots (None: any); zero-shot runs stand for every number of shots."""
        there = [run for run in self.runs if run.dataset == dataset]
        return [run for run in there if shots in (None, run.shots) or run.deterministic]

    def summary(self, metric: Metric, dataset: str, shots: int | None = None) -> Summary | None:
        """The metric's values by seed; None without any."""
        runs = self.runs_on(dataset, shots)
        values = {run.seed: value for run in runs if (value := metric.of_run(run)) is not None}
        return summarise(values, deterministic=all(run.deterministic for run in runs))


def check_protocol(runs: Sequence[Run], name: str | None) -> str:
    """The given protocol, or the one that all runs share; runs of others are a ResultsError that names their paths."""
    there = sorted({run.protocol for run in runs})
    if name is None and len(there) > 1:
        said = f"runs of several protocols cannot share a table or plot: choose with --protocol ({', '.join(there)})"
        raise ResultsError(said + _paths(runs, there))
    name = name or there[0]
    if name not in PROTOCOLS:
        raise ResultsError(f"no table for protocol {name!r}; known: {', '.join(PROTOCOLS)}{_paths(runs, [name])}")
    accepted = (name, *PROTOCOLS[name].also_reads)
    if others := [protocol for protocol in there if protocol not in accepted]:
        raise ResultsError(f"runs of other protocols cannot stand in a {name} table:{_paths(runs, others)}")
    return name


def _paths(runs: Sequence[Run], protocols: Sequence[str]) -> str:
    """Lines that name the first runs of each protocol."""
    lines = []
    for protocol in protocols:
        paths = [run.path for run in runs if run.protocol == protocol]
        lines += [f"\n  {protocol}: {path}" for path in paths[:MAX_NAMED]]
        lines += [f"\n  {protocol}: and {len(paths) - MAX_NAMED} more"] * (len(paths) > MAX_NAMED)
    return "".join(lines)


def group_methods(runs: Sequence[Run], protocol: Protocol) -> list[Method]:
    """The table's rows in order: runs whose settings differ in one column are different rows.

    Raises:
        ResultsError: two runs with nothing to tell them apart, named with their paths.
    """
    groups: dict[tuple[str, str, str, int | None], list[Run]] = defaultdict(list)
    for run in runs:
        # zero-shot runs use no shots, whatever their configuration says
        shots = None if protocol.columns_by == "shots" or run.deterministic else run.shots
        groups[(run.trainer, run.setting, run.backbone, shots)].append(run)
    keys = sorted(groups, key=lambda key: (trainer_order(key[0]), key[1], key[2], key[3] or 0))
    trained = [key for key in keys if not all(run.deterministic for run in groups[key])]
    several_backbones = len({key[2] for key in keys}) > 1
    several_shots = len({key[3] for key in trained}) > 1
    methods, same_place = [], []
    for key in keys:
        trainer, setting, backbone, shots = key
        details = [setting] if len({other[1] for other in keys if other[0] == trainer}) > 1 else []
        details += [backbone] if several_backbones else []
        details += [shots_text(shots)] if several_shots and key in trained else []
        for changes, same in _by_settings(groups[key]):
            marks = ["transductive"] if any(run.transductive for run in same) else []
            named = ", ".join([*details, *changes, *marks])
            label = f"{trainer} ({named})" if named else trainer
            methods.append(Method(label, trainer, setting, backbone, shots, tuple(same)))
            first: dict[tuple[str, int, int], Run] = {}
            pairs = [(first.setdefault((run.dataset, run.shots, run.seed), run), run) for run in same]
            same_place += [(kept, run) for kept, run in pairs if kept is not run]
    if same_place:
        first_run, run = same_place[0]
        more = f" (and {len(same_place) - 1} more such pairs)" if len(same_place) > 1 else ""
        raise ResultsError(
            f"two runs of {run.trainer} ({run.setting}) on {run.dataset}, {shots_text(run.shots)}, seed {run.seed} "
            f"have different numbers: {first_run.path} and {run.path}{more}\n"
            "keep one of each, name the folder of one experiment only, or give them different settings"
        )
    return methods


def _by_settings(runs: Sequence[Run]) -> list[tuple[list[str], list[Run]]]:
    """Runs apart by the settings in which those of one column differ, each part with these settings in words."""
    columns: dict[tuple[str, int], list[Run]] = defaultdict(list)
    for run in runs:
        columns[run.dataset, run.shots].append(run)
    keys = sorted(set.union(*map(differing_settings, columns.values())))
    parts: dict[tuple[str, ...], list[Run]] = defaultdict(list)
    for run in runs:
        parts[tuple(f"{key} {run.settings.get(key)}" for key in keys)].append(run)
    words = [[printable(text)[:MAX_LABEL] for text in changes] for changes in parts]
    # long values may begin alike: a number keeps two rows from having one name
    named = [[*text, f"no. {number}"] if words.count(text) > 1 else text for number, text in enumerate(words, 1)]
    return sorted(zip(named, parts.values(), strict=True), key=lambda part: part[0])


def differing_settings(runs: Sequence[Run]) -> set[str]:
    """Settings that decide the numbers and that some runs have otherwise.

    A key that one of the runs does not know is none: another version of the code wrote it.
    """
    known = set.intersection(*(set(run.settings) for run in runs))
    return {key for key in known if any(run.settings[key] != runs[0].settings[key] for run in runs)}


def chosen_metrics(protocol: Protocol, names: Sequence[str]) -> list[Metric]:
    """The metrics that these names, keys, labels or groups, stand for; for no name, the protocol's own.

    A ResultsError for an unknown one.
    """
    known: dict[str, list[Metric]] = {}
    for metric in protocol.on_request:
        known.setdefault(metric.group, []).append(metric)
    groups = list(known)
    for metric in (*protocol.on_request, *protocol.metrics):
        known |= {metric.label.lower(): [metric], metric.key.lower(): [metric]}
    unknown = [name for name in names if name.strip().lower() not in known]
    if unknown:
        members = {group: [metric.key for metric in known[group]] for group in groups}
        listed = [
            name if all(name in key for key in keys) else f"{name} ({', '.join(keys)})"
            for name, keys in members.items()
        ]
        choices = ", ".join([*(metric.key for metric in protocol.metrics), *listed])
        raise ResultsError(f"no metric {unknown[0]!r} in {protocol.title}; choose from {choices}")
    chosen = (metric for name in names for metric in known[name.strip().lower()])
    return list(dict.fromkeys(chosen)) or list(protocol.metrics)


def comparability(runs: Sequence[Run]) -> list[str]:
    """Warnings about what keeps runs from being compared: other images, other weights, a demonstration model."""
    facts = [
        (f"runs on {run.dataset} use different split files", run, run.record["data"], "split_sha256") for run in runs
    ]
    different = "runs have different weights for the backbone"
    facts += [(f"{different} {run.backbone}", run, run.record["model"], "backbone_sha256") for run in runs]
    split = "some runs are tested on validation images, others on test images (TEST.SPLIT)"
    facts += [(split, run, run.settings, "TEST.SPLIT") for run in runs]
    first_with: dict[str, dict[str, Run]] = defaultdict(dict)  # each content under one name
    for said, run, part, key in facts:
        if (content := part.get(key)) is not None:
            first_with[said].setdefault(content, run)
    groups = {said: list(by_content.values()) for said, by_content in first_with.items()}
    first_of = {run.demonstration: run for run in reversed(runs)}
    beside = "the bundled demonstration model stands beside other backbones, with which it cannot be compared"
    groups[beside] = [first_of[kind] for kind in (True, False) if kind in first_of]
    return [f"{said}: {', '.join(str(run.path) for run in group)}" for said, group in groups.items() if len(group) > 1]


def of_protocol(runs: Sequence[Run], name: str | None) -> Sequence[Run]:
    """The runs of a protocol, or where there is none, of another one that holds all its numbers; all for None."""
    if name is None:
        return runs
    for accepted in (name, *PROTOCOLS[name].also_reads):
        if kept := [run for run in runs if run.protocol == accepted]:
            return kept
    raise ResultsError(f"no run of protocol {name}; there are: {_listed(run.protocol for run in runs)}")


def selected(
    runs: Sequence[Run],
    trainers: Sequence[str],
    datasets: Sequence[str],
    seeds: Sequence[int],
    shots: Sequence[int] = (),
    protocol: str | None = None,
) -> list[Run]:
    """The runs that fit every choice; a choice that fits no run, or all together, are a ResultsError."""
    runs = of_protocol(runs, protocol)
    for count in shots:
        if not any(run.shots == count for run in runs):
            raise ResultsError(f"no run with {shots_text(count)}; there are: {_listed(run.shots for run in runs)}")
    for trainer in trainers:
        if not any(trainer in run.method_names for run in runs):
            raise ResultsError(f"no run of trainer {trainer!r}; there are: {_listed(run.trainer for run in runs)}")
    wanted = {canonical_dataset(name): name for name in datasets}
    for canonical, name in wanted.items():
        if not any(canonical_dataset(run.dataset) == canonical for run in runs):
            raise ResultsError(f"no run on data set {name!r}; there are: {_listed(run.dataset for run in runs)}")
    kept = [
        run
        for run in runs
        if (not trainers or set(run.method_names) & set(trainers))
        and (not wanted or canonical_dataset(run.dataset) in wanted)
        and (not seeds or run.seed in seeds)
        # zero-shot runs use no shots: they stand beside any number
        and (not shots or run.shots in shots or run.deterministic)
    ]
    if not kept:
        raise ResultsError("no run fits --trainer, --dataset and --seed (and --shots) together")
    return kept


def _listed(values: Iterable[str | int]) -> str:
    return ", ".join(map(str, sorted(set(values))))
