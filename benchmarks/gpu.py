"""First contact with a GPU, in one command: whether it computes what the CPU's tests hold, and what that costs.

Items come in order of worth, each in a try of its own: one that fails is a line of the table, and the exit status is 1
at the end. What the time does not suffice for is skipped. With --device cpu the same runs small.
"""

from __future__ import annotations

import argparse
import gc
import json
import signal
import subprocess
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from benchmarks import measure
from benchmarks.measure import ParityError, random_batch
from benchmarks.runs import ASSETS, CONFIGS, make_photos, photo_loader, require_same_batches
from benchmarks.steps import evaluation_batch, training_step
from common.commandline import one_line
from dassl.engine import TRAINER_REGISTRY
from prompting.model import PRECISIONS
from sweeping.plan import setting_options
from trainers.base import PromptTrainer
from trainers.step import DeviceStep, record_on_cuda

METHODS = ("BMIP", "BMIP official", "MaPLe", "CoOp", "PromptSRC", "CoCoOp")
WAYS = {"plain": ["off"], "fast": ["off"], "graph": ["on"], "compile": ["auto", "TRAIN.COMPILE", "True"]}
GRAPH_TOLERANCE = {"fp32": 1e-4, "fp16": 2e-2, "bf16": 2e-2, "amp": 2e-2}  # to the ordinary step, relative
NEEDS_CUDA = {"environment", "graph", "waits", "compile"}  # an item's first or last word
COLUMNS = {
    **{"item": "{item}", "status": "{status}", "took [s]": "{took:.1f}", "ms": "{ms[median]:.2f}"},
    **{"plain / this": "{ratio:.2f}", "steps by": "{driver}", "kernels": "{kernels:.0f}", "busy": "{utilisation:.0%}"},
    **{"peak [MiB]": "{peak_mib:.0f}", "logits off by": "{max_logit_difference:.1e}"},
    **{"gradient cosine": "{min_gradient_cosine:.7f}", "error": "{error}"},
}


def measure_gpu(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """A row per item. ParityError: some failed."""
    if args.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("there is no CUDA device here; --device cpu runs the same small")

    def ring(*_: Any) -> None:
        raise TimeoutError("the whole time is up")

    signal.signal(signal.SIGALRM, ring)
    end, failed = time.monotonic() + 60 * args.minutes, []
    with tempfile.TemporaryDirectory() as folder:
        for name, work, *arguments in Card(args, Path(folder)).items():
            row, start, words = {"item": name, "status": "ok"}, time.monotonic(), name.split()
            try:
                if args.device == "cpu" and NEEDS_CUDA & {words[0], words[-1]}:
                    row["status"] = "needs cuda"
                elif end <= start:
                    row["status"] = "skipped"
                else:
                    signal.setitimer(signal.ITIMER_REAL, end - start)
                    row |= work(*arguments)
            except TimeoutError:  # what has begun is broken off
                row["status"] = "skipped"
            except (Exception, SystemExit) as error:
                row |= {"status": "failed", "error": f"{type(error).__name__}: {one_line(error)}"}
                failed.append(name)
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
            gc.collect()
            torch.cuda.empty_cache()
            yield row | {"took": time.monotonic() - start}
    if failed:
        raise ParityError(f"{len(failed)} items failed: {', '.join(failed)}")


class Card:
    """What is done on a device, a method per kind of item; on the CPU with a tiny CLIP and few classes."""

    def __init__(self, args: argparse.Namespace, folder: Path) -> None:
        self.device, self.rounds, self.folder, self.cuda = args.device, args.rounds, folder, args.device == "cuda"
        self.classes, self.images = (10, 4) if self.cuda else (3, 2)
        self.clip_model = measure.random_clip("ViT-B/16" if self.cuda else "tiny")
        self.plain_ms: dict[tuple[Any, ...], float] = {}

    def items(self) -> Iterator[tuple[Any, ...]]:
        """Name, work and its arguments, in order of worth."""
        yield "environment", self.environment
        for work in (self.parity, self.graph):
            for precision in PRECISIONS:
                yield from ((f"{work.__name__} {method} {precision}", work, method, precision) for method in METHODS)
        yield from ((f"waits {method}", self.waits, method) for method in METHODS)
        yield "device transform", self.device_transform
        cases = (
            [("BMIP", 10), ("BMIP", 100), ("BMIP", 1000), ("MaPLe", 100), ("CoOp", 100)] if self.cuda else [("BMIP", 3)]
        )
        for ways in (("plain", "fast", "graph"), ("compile",)):
            for what in ("train", "eval"):  # a test batch is not recorded
                for case in ((what, *case, way) for case in cases for way in ways if (what, way) != ("eval", "graph")):
                    yield " ".join(map(str, case)), self.timed, *case
            if "fast" in ways:
                yield "whole run", self.whole_run
                yield "resumed run", self.resumed_run

    def build(self, method: str, path: str, precision: str, *options: str, classes: int = 0) -> Any:
        """A trainer on the shared CLIP, with its method's setting; half precision is computed in on a CPU too."""
        name, *official = method.split()
        node = f"TRAINER.{TRAINER_REGISTRY.get(name).node}"
        setting = [*setting_options(name, not self.cuda)[1], "TRAIN.CPU_HALF", "True", f"{node}.PREC", precision]
        setting += [f"{node}.GATE", "official"] if official else []
        case = name, self.clip_model, classes or self.classes, path, self.device
        return measure.build_trainer(*case, [*setting, *options])

    def environment(self) -> dict[str, Any]:
        """Card and driver, beside what the JSON says of the machine."""
        command = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
        card = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
        return {"card": card, "cuda": torch.version.cuda, "TF32 in cuDNN": torch.backends.cudnn.allow_tf32}

    def parity(self, method: str, precision: str) -> dict[str, Any]:
        """Both paths against fp32."""
        fast, plain = (self.build(method, path, precision) for path in ("fast", "plain"))
        return measure.parity(fast, plain, random_batch(plain, self.images), method)

    def graph(self, method: str, precision: str) -> dict[str, Any]:
        """A replayed step trains as Dassl's hooks do, across a validation and with a smaller last batch."""
        seen: dict[str, list[torch.Tensor]] = {}
        for way in ("hooks", "graph"):
            trainer = self.build(method, "fast", precision)
            # no step is skipped, so that there is something to compare
            scaler = trainer.scaler and torch.amp.GradScaler(self.device, init_scale=measure.GRADIENT_SCALE)
            learner, values = trainer.model.prompt_learner, seen.setdefault(way, [])
            start = {name: value.clone() for name, value in learner.state_dict().items()}
            with trainer.swapped(scaler=scaler):
                step = DeviceStep(trainer, record_on_cuda) if way == "graph" else None
                with trainer.swapped(device_step=step):
                    for seed, size in enumerate((4, 4, 0, 4, 3)):
                        if not size:
                            self.test(trainer, random_batch(trainer, 5))
                            continue
                        trainer.set_model_mode("train")
                        report = trainer.forward_backward(random_batch(trainer, size, seed))
                        values.extend(map(torch.tensor, [report["loss"], *learner.gate_values().values()]))
            moved = [(value - start[name]).flatten() for name, value in learner.state_dict().items()]
            values.append(torch.cat(moved).cpu())
        off = [float((b - a).norm() / a.norm()) for a, b in zip(*seen.values(), strict=True)]
        if not all(each <= GRAPH_TOLERANCE[precision] for each in off):
            raise ParityError(f"losses and gates step by step, and then the weights, are off, relatively, by {off}")
        return {"off": off}

    @torch.no_grad()
    def test(self, trainer: Any, batch: dict[str, Any]) -> None:
        """Text features and a batch of test images, the evaluator's part included."""
        views = batch["img"]
        trainer.set_model_mode("eval")
        with trainer.model.evaluating():
            images, labels = trainer.parse_batch_test(batch | {"img": views[0] if isinstance(views, list) else views})
            trainer.evaluator.process(trainer.model_inference(images), labels)

    def waits(self, method: str) -> dict[str, Any]:
        """A step waits for the device once, recorded or not; a test batch too, and once where its text is looked at."""
        found = {}
        for way in ("fast", "graph"):
            trainer = self.build(method, "fast", "fp16", "TRAIN.CUDA_GRAPH", *WAYS[way])
            batch = random_batch(trainer, 4)
            found[way] = waits_of(training_step(trainer, batch))
        found["test"] = waits_of(lambda: self.test(trainer, batch))
        if [len(lines) for lines in found.values()] != [1, 1, 2 - trainer.model.prompt_learner.varies_per_image]:
            raise ParityError(f"waits for the device: {found}")
        return {"waits": found}

    def device_transform(self) -> dict[str, Any]:
        """Its images are the loader's to the last bit."""
        paths = make_photos(str(self.folder), "500x375", 8 if self.cuda else 2)
        args = argparse.Namespace(device=self.device, opts=[], batch=len(paths))
        loaders = [photo_loader("train", paths, args, on_device=on_device) for on_device in (False, True)]
        return {"same batches": require_same_batches(*loaders, "the device's transform")}

    def timed(self, what: str, method: str, classes: int, way: str) -> dict[str, Any]:
        """Time, launches and memory of a training step of 4 images or a test batch of 100, in fp16 (CPU: 2, fp32)."""
        options = ["TRAIN.CUDA_GRAPH", *WAYS[way]] if self.cuda else []
        path, precision = "plain" if way == "plain" else "fast", "fp16" if self.cuda else "fp32"
        trainer = self.build(method, path, precision, *options, classes=classes)
        batch = random_batch(trainer, 100 if what == "eval" and self.cuda else self.images)
        before = torch.cuda.memory_allocated()
        if self.cuda:
            torch.cuda.reset_peak_memory_stats()
        work = (training_step if what == "train" else evaluation_batch)(trainer, batch)
        seconds = measure.interleave({way: work}, self.device, self.rounds, warm_up=5 if self.cuda else 1)[way]
        row: dict[str, Any] = {"ms": measure.spread_of([1000 * each for each in seconds])}
        row |= {"driver": measure.step_driver(trainer)} if what == "train" else {}
        if way == "plain":
            self.plain_ms[what, method, classes] = row["ms"]["median"]
        elif plain_ms := self.plain_ms.get((what, method, classes)):
            row["ratio"] = plain_ms / row["ms"]["median"]
        if self.cuda:
            row["peak_mib"] = (torch.cuda.max_memory_allocated() - before) / 2**20
            row |= measure.profiled(work, self.device)
        return row

    def train(self, name: str, status: int = 0) -> torch.Tensor:
        """Trained weights of BMIP on the bundled digits, by train.py; RuntimeError: another exit status."""
        import train  # what a run needs

        with measure.quiet() as said:
            ended = train.main([
                *("--root", str(ASSETS), "--seed", "1", "--trainer", "BMIP", "--device", self.device),
                *("--config-file", str(CONFIGS / "trainers/BMIP/tiny_c2_ep10_batch4_2ctx.yaml")),
                *("--dataset-config-file", str(CONFIGS / "datasets/digits.yaml")),
                *("--output-dir", str(self.folder / name), "OPTIM.MAX_EPOCH", "2", "DATALOADER.NUM_WORKERS", "0"),
                *("DATASET.NUM_SHOTS", "16" if self.cuda else "2", "DATASET.SUBSAMPLE_CLASSES", "base"),
            ])  # fmt: skip
            if ended != status:
                raise RuntimeError(f"train.py ended with status {ended}: {said.getvalue().strip()[-300:]}")
        files = sorted((self.folder / name / "prompt_learner").glob("model.pth.tar-*"))
        states = [torch.load(file, map_location="cpu", weights_only=True)["state_dict"] for file in files]
        return torch.cat([value.float().flatten() for state in states for value in state.values()] or [torch.ones(0)])

    def whole_run(self) -> dict[str, Any]:
        """Training and test; what results.json says of them is kept."""
        self.train("whole")
        results = json.loads((self.folder / "whole/results.json").read_text(encoding="utf-8"))
        return {key: results.get(key) for key in ("metrics", "timing", "notes")}

    def resumed_run(self) -> dict[str, Any]:
        """Stopped after three batches, a run goes on to the weights of a whole one, as far as a card repeats any."""
        step, batches = PromptTrainer.forward_backward, []

        def stopping(trainer: Any, batch: dict[str, Any]) -> dict[str, float]:
            batches.append(batch)
            if len(batches) == 3:
                signal.raise_signal(signal.SIGTERM)
            return step(trainer, batch)

        with mock.patch.object(PromptTrainer, "forward_backward", stopping):
            self.train("resumed", status=75)
        whole = self.train("whole")
        off = {run: float((self.train(run) - whole).abs().max()) for run in ("repeated", "resumed")}
        if not off["resumed"] <= 10 * off["repeated"]:
            raise ParityError(f"the weights are off by {off}")
        return {"off": off}


def waits_of(work: Callable[[], Any]) -> list[str]:
    """Lines of code at which the host waits for the device, at the third call; before, what is made once may wait."""
    work()
    work()
    torch.cuda.synchronize()
    try:
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            work()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return [f"{Path(each.filename).name}:{each.lineno}" for each in seen if "synchroniz" in str(each.message)]
