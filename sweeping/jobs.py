"""The queue of a sweep: one job is one call of train.py with a folder of its own."""

from __future__ import annotations

import itertools
import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from sweeping.protocols import PROTOCOLS, UNTRAINED, Protocol
from sweeping.settings import (
    BUNDLED_ROOT,
    REPOSITORY,
    Setting,
    SweepError,
    data_section,
    dataset_file,
    folder_of,
    is_bundled,
    label_of,
    published_setting,
    setting_file,
)


@dataclass(frozen=True)
class Job:
    """One run.

    Attributes:
        trainer, setting, dataset, shots, seed: what tells it apart; the data set by its config name.
        folder: where it writes.
        arguments: of train.py.
        needs: folder of the run whose weights it tests; None: it trains.
        program: what is run, in the repository's folder.
        protocol: whose table it belongs to, as in results.json.
    """

    trainer: str
    setting: str
    dataset: str
    shots: int
    seed: int
    folder: Path
    arguments: tuple[str, ...]
    needs: Path | None = None
    program: str = "train.py"
    protocol: str = ""

    @property
    def label(self) -> str:
        """One line for people."""
        return f"{self.trainer} {self.setting} {self.dataset} {self.shots} shots seed {self.seed}"

    def command(self, python: str = "python") -> list[str]:
        """The command line, to be run in the repository's folder."""
        return [python, self.program, *self.arguments]

    def shown(self) -> str:
        """The command line as one types it."""
        return " ".join(_quoted(word) for word in self.command())


def _quoted(word: str) -> str:
    if re.fullmatch(r"[A-Za-z0-9_./:=+,@%-]+", word):
        return word
    return shlex.quote(word) if re.search(r'["$`\\!]', word) or not word else f'"{word}"'


@dataclass(frozen=True)
class Variation:
    """A setting changed in some keys, with the words that its folder and its row are called by."""

    name: str = ""
    options: tuple[str, ...] = ()


@dataclass(frozen=True)
class Plan:
    """What a sweep is asked for.

    Attributes:
        protocol: key of ``PROTOCOLS``.
        trainers: "NAME" or "NAME=SETTING".
        datasets: config names, or paths of config files; empty: the published table's.
        seeds: of the few-shot samples.
        shots: empty: the protocol's.
        root: data root; "": the bundled data's for bundled data sets.
        output: folder that the layout starts from.
        source: for transfer protocols, the data set that is trained on; "": the protocol's.
        variations: of every setting; one without a name is the setting itself.
        stage: "train", "evaluate" or "" for both.
        options: KEY VALUE pairs, stronger than everything else.
        flags: further options of train.py.
    """

    protocol: str
    trainers: tuple[str, ...]
    datasets: tuple[str, ...] = ()
    seeds: tuple[int, ...] = (1, 2, 3)
    shots: tuple[int, ...] = ()
    root: str = ""
    output: Path = Path("output")
    source: str = ""
    variations: tuple[Variation, ...] = (Variation(),)
    stage: str = ""
    options: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()


def variations_of(axes: Sequence[Sequence[str]]) -> tuple[Variation, ...]:
    """Every combination of values of some keys.

    Args:
        axes: of each ``KEY VALUE VALUE ...``.

    Raises:
        SweepError: a key without a value.
    """
    for axis in axes:
        if len(axis) < 2:
            raise SweepError(f"--vary {' '.join(axis)}: give a key and its values")
    choices = [[(axis[0], value) for value in axis[1:]] for axis in axes]
    return tuple(
        Variation("_".join(f"{key.rpartition('.')[2].lower()}_{value}" for key, value in pairs), sum(pairs, ()))
        for pairs in itertools.product(*choices)
    )


def build_queue(plan: Plan) -> list[Job]:
    """All jobs in order: seed by seed, so that a whole table of one seed is there first; each folder once.

    Raises:
        SweepError: unknown protocol, trainer, setting or data set, no data root, two runs for one folder, or no run.
    """
    protocol = protocol_named(plan.protocol)
    protocol = replace(protocol, source=plan.source or protocol.source) if protocol.source else protocol
    jobs: dict[Path, Job] = {}
    for seed, shots in itertools.product(plan.seeds, plan.shots or protocol.shots):
        for dataset, trainer, variation in itertools.product(
            plan.datasets or protocol.datasets, plan.trainers, plan.variations
        ):
            name = trainer.partition("=")[0]
            if name in UNTRAINED and seed != plan.seeds[0]:
                continue
            for job in _Builder(plan, protocol, trainer, variation, shots, seed).jobs(dataset):
                if jobs.setdefault(job.folder, job) != job:
                    raise SweepError(f"two different runs would write to {job.folder}: name their files differently")
    queue = [job for job in jobs.values() if plan.stage in ("", "evaluate" if job.needs else "train")]
    if not queue:
        raise SweepError(
            f"nothing to {plan.stage or 'run'}: {' '.join(plan.datasets)} is what {plan.protocol} trains on"
        )
    return queue


def protocol_named(name: str) -> Protocol:
    """The protocol of that name.

    Raises:
        SweepError: naming the ones there are.
    """
    if name not in PROTOCOLS:
        raise SweepError(f"unknown protocol {name!r}; there are: {', '.join(PROTOCOLS)}")
    return PROTOCOLS[name]


@dataclass(frozen=True)
class _Builder:
    """Makes the jobs of one trainer, variation, number of shots and seed."""

    plan: Plan
    protocol: Protocol
    trainer: str
    variation: Variation
    shots: int
    seed: int

    def jobs(self, dataset: str) -> Iterator[Job]:
        """The run on a data set, after the one that trains what it tests."""
        if not self.protocol.source:
            yield self._job(self.protocol, dataset, tests_only=bool(self.protocol.weights_layout))
            return
        source = replace(self, protocol=PROTOCOLS["cross_dataset"])
        yield source._job(replace(source.protocol, source=self.protocol.source), self.protocol.source, tests_only=False)
        if dataset != self.protocol.source or self.protocol.name != "cross_dataset":
            yield self._job(self.protocol, dataset, tests_only=True)

    def _job(self, protocol: Protocol, dataset: str, tests_only: bool) -> Job:
        name, _, own = self.trainer.partition("=")
        # what is tested was trained on the source: its setting is the one to use
        setting = (
            Setting(own, own) if own else published_setting(name, protocol, protocol.source or dataset, self.shots)
        )
        setting_path, dataset_path = setting_file(name, setting.file), dataset_file(dataset)
        pairs = (*self.variation.options, *self.plan.options)
        called = "_".join(filter(None, (setting.name, self.variation.name)))
        source = label_of(protocol.source, self._root(protocol.source), pairs) if protocol.source else ""
        labels = {
            "protocol": protocol.name,
            "trainer": name,
            "setting": called,
            "dataset": folder_of(dataset, self._root(dataset), pairs),
            "shots": self.shots,
            "seed": self.seed,
            "source": folder_of(protocol.source, self._root(protocol.source), pairs) if protocol.source else "",
        }
        folder = self.plan.output / protocol.layout.format(**labels)
        needs = self.plan.output / protocol.weights_layout.format(**labels) if tests_only else None
        arguments = (
            *("--root", self._root(dataset), "--seed", str(self.seed), "--trainer", name),
            *("--config-file", _relative(setting_path), "--dataset-config-file", _relative(dataset_path)),
            *("--output-dir", str(folder)),
            *(("--eval-only", "--model-dir", str(needs)) if needs else ()),
            *self.plan.flags,
            *("DATASET.NUM_SHOTS", str(self.shots), "DATASET.SUBSAMPLE_CLASSES", protocol.train_classes),
            *("TEST.CLASS_SPLITS", str(protocol.splits), "TEST.PROTOCOL", protocol.name),
            *(("TEST.SOURCE_DATASET", source) if source else ()),
            *(("TEST.SETTING", called) if called != setting.file else ()),
            *pairs,
        )
        return Job(
            *(name, called, labels["dataset"], self.shots, self.seed, folder, arguments, needs), protocol=protocol.name
        )

    def _root(self, dataset: str) -> str:
        data_section(dataset)  # a file that cannot be read is refused before any run starts
        if self.plan.root:
            return self.plan.root
        if is_bundled(dataset):
            return BUNDLED_ROOT
        raise SweepError(f"{dataset} needs --root: the folder that holds one folder per data set")


def _relative(path: Path) -> str:
    path = path.resolve()
    return str(path.relative_to(REPOSITORY)) if path.is_relative_to(REPOSITORY) else str(path)
