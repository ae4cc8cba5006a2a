"""What is measured and how: a trainer on a random CLIP of published size, without data or downloads, in two ways.

Both are timed side by side, once it is checked that they compute the same.
"""

from __future__ import annotations

import contextlib
import copy
import io
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import cycle, islice
from typing import Any
from unittest import mock

import torch
from clip.clip import _tokenizer
from clip.model import CLIP
from tabulate import tabulate
from torch import nn
from torch.autograd import DeviceType
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile
from torch.utils._pytree import tree_map

import trainers.coprompt
import trainers.promptsrc
from dassl.config import get_cfg_default
from dassl.engine import TRAINER_REGISTRY
from prompting.tokens import encode
from prompting.weights import convert_towers
from trainers.predictor import trainer_without_data
from trainers.templates import PROMPTSRC_TEMPLATES

# By the number type of the products: how far logits may be from fp32's on the same weights, at logit scale 100, and the
# least cosine of a gradient with fp32's. In fp32 they hold the fast path to the plain one and are the product's bounds
# (tests/prompting/test_paths.py): a faster path that computes something else is no result.
TOLERANCES = {torch.float32: (1e-4, 0.999999), torch.float16: (0.1, 0.99), torch.bfloat16: (1.0, 0.9)}
GRADIENT_SCALE = 2.0**10  # of the loss where a run scales it

# Class counts at which the plain path runs where more are wanted than fit into memory or patience: its cost is a
# straight line in the classes. They are wide apart, since the line carries their noise far; and the larger one so large
# that malloc takes the tensors from the system and gives them back each time, as at the wanted count.
SAMPLES = (10, 120)
PROFILED_STEPS = 5
RATIO = "{ratio[median]:.2f} ({ratio[min]:.2f} - {ratio[max]:.2f})"  # a column of `print_table`

SIZES = {
    "ViT-B/16": dict(vision_layers=12, vision_width=768, vision_patch_size=16, embed_dim=512, transformer_width=512),
    "ViT-B/32": dict(vision_layers=12, vision_width=768, vision_patch_size=32, embed_dim=512, transformer_width=512),
    "ViT-L/14": dict(vision_layers=24, vision_width=1024, vision_patch_size=14, embed_dim=768, transformer_width=768),
    # As deep as ViT-B/16 and narrow: what is counted, not timed.
    "narrow": dict(vision_layers=12, vision_width=64, vision_patch_size=16, embed_dim=64, transformer_width=64),
    # Small enough for a smoke run in the tests.
    "tiny": dict(vision_layers=4, vision_width=128, vision_patch_size=16, embed_dim=64, transformer_width=128),
}
# Words per class name, in turn: 2.2 tokens on average, as ImageNet's.
NAME_LENGTHS = (1, 2, 3, 2, 3)


class ParityError(RuntimeError):
    """Two ways do not compute the same, so that no ratio is reported."""


def random_clip(name: str, resolution: int | None = None) -> nn.Module:
    """A frozen CLIP of one of ``SIZES`` with random weights, float32, in eval mode.

    The resolution is the pixels of an image's side, a multiple of the patch size; by default the published one.
    """
    sizes, small = SIZES[name], name in ("narrow", "tiny")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = CLIP(
            **sizes,
            image_resolution=resolution or (32 if small else 224),
            context_length=77,
            vocab_size=49408,
            transformer_heads=sizes["transformer_width"] // 64,
            transformer_layers=4 if name == "tiny" else 12,
        )
    model.logit_scale.data.fill_(torch.tensor(100.0).log())
    return model.float().eval().requires_grad_(False)


@contextlib.contextmanager
def quiet() -> Iterator[io.StringIO]:
    """What Dassl says while building and testing is no result; it goes to what this yields."""
    with io.StringIO() as said, contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        yield said


def class_names(count: int) -> list[str]:
    """Different class names, each of one to three words that CLIP's vocabulary holds whole."""
    words = (token.removesuffix("</w>") for token in _tokenizer.encoder if token.endswith("</w>"))
    whole = (word for word in words if len(word) > 3 and word.isascii() and word.isalpha() and len(encode(word)) == 1)
    return [" ".join(islice(whole, length)) for length in islice(cycle(NAME_LENGTHS), count)]


def build_trainer(
    trainer: str, clip_model: nn.Module, classes: int | Sequence[str], path: str, device: str, options: list[str]
) -> Any:
    """A trainer as train.py builds it, but silent, on a given CLIP, which two in fp32 share, and on class names only.

    The classes are how many, or their names; the path is "fast" or "plain"; the options are KEY VALUE pairs. The towers
    are those of a run in the method's PREC.
    """
    cfg = get_cfg_default()
    cfg.TRAINER.NAME, cfg.SEED, cfg.USE_CUDA = trainer, 1, device != "cpu"
    size = clip_model.visual.input_resolution
    cfg.INPUT.SIZE = (size, size)
    cfg.OPTIM.NAME, cfg.OPTIM.LR = "sgd", 1e-3
    cfg.merge_from_list(options)
    cfg.freeze()
    kind = TRAINER_REGISTRY.get(trainer)
    # Frozen teachers from one sentence per class instead of sixty: building is quicker, a step costs the same.
    one_template = {"PROMPTSRC_TEMPLATES": PROMPTSRC_TEMPLATES[:1]}
    with (
        mock.patch.multiple(trainers.promptsrc, **one_template),
        mock.patch.multiple(trainers.coprompt, **one_template),
        quiet(),
    ):
        measured = trainer_without_data(
            cfg,
            class_names(classes) if isinstance(classes, int) else classes,
            path=path,
            load_backbone=lambda self: rounded(clip_model, self.precision.weights_dtype, self.precision.tower_dtype),
            build_objective=kind.build_objective,
        )
    measured.num_batches, measured.batch_idx = 1_000_000, 0  # the learning rate stays
    measured.shared_clip, measured.options = clip_model, options
    return measured


def rounded(clip_model: nn.Module, weights: torch.dtype, kept_in: torch.dtype = torch.float32) -> nn.Module:
    """A float32 CLIP with its matrices rounded to a type, kept in that or in float32; float32: itself."""
    if weights == torch.float32:
        return clip_model
    model = copy.deepcopy(clip_model)
    convert_towers(model, weights)
    return model.float() if kept_in == torch.float32 else model


def random_batch(trainer: Any, size: int, seed: int = 0) -> dict[str, Any]:
    """A batch of random images with labels, pinned for CUDA as a loader's; two views where the trainer wants two."""
    generator, side = torch.Generator().manual_seed(seed), trainer.model.image_encoder.resolution
    labels = torch.randint(trainer.num_classes, (size,), generator=generator)
    views = [torch.randn(size, 3, side, side, generator=generator) for _ in range(2)]
    batch = {"img": views if trainer.cfg.DATALOADER.K_TRANSFORMS == 2 else views[0], "label": labels}
    return tree_map(torch.Tensor.pin_memory, batch) if trainer.device.type == "cuda" else batch


def step_driver(trainer: Any) -> str:
    """What took the training steps: Dassl's hooks, the device step, or a CUDA graph that replays it."""
    step = trainer.device_step
    return "hooks" if step is None else "device step" if step.recorded is None else "graph"


def first_view(trainer: Any, batch: dict[str, Any]) -> torch.Tensor:
    """A batch's images, of two views the first."""
    images = trainer.parse_batch_train(batch)[0]
    return images[0] if isinstance(images, list) else images


def interleave(
    works: dict[str, Callable[[], Any]], device: str, rounds: int, warm_up: int = 1
) -> dict[str, list[float]]:
    """Seconds of each work in turn, A B A B ..., so that drift hits all alike; the first rounds do not count."""
    times = [[seconds_of(work, device) for work in works.values()] for _ in range(warm_up + rounds)]
    return dict(zip(works, map(list, zip(*times[warm_up:], strict=True)), strict=True))


def seconds_of(work: Callable[[], Any], device: str) -> float:
    """CPU seconds of this process, or seconds between CUDA events, of one call."""
    if device == "cpu":
        start = time.process_time()
        work()
        return time.process_time() - start
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    work()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / 1000


def spread_of(values: Sequence[float]) -> dict[str, float]:
    """Median, smallest and largest."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def ratio_of(slow: Sequence[float], quick: Sequence[float]) -> dict[str, float]:
    """Median and spread of the ratios round by round."""
    return spread_of([one / other for one, other in zip(slow, quick, strict=True)])


def summary(times: dict[str, list[float]]) -> dict[str, Any]:
    """Median and spread of every way and, where "fast" and "plain" are among them, of the ratios plain / fast."""
    ratio = {"ratio": ratio_of(times["plain"], times["fast"])} if {"fast", "plain"} <= times.keys() else {}
    return {name: spread_of(values) for name, values in times.items()} | ratio


def print_table(rows: Sequence[dict[str, Any]], columns: dict[str, str]) -> None:
    """A line per row; a column is a text that the row's figures go into, "-" where it lacks one, left out if all do."""

    def cell(row: dict[str, Any], text: str) -> str:
        try:
            return text.format(**row, mark="~" if "plain_from_classes" in row else "")
        except KeyError:
            return "-"

    table = {title: [cell(row, text) for row in rows] for title, text in columns.items()}
    table = {title: cells for title, cells in table.items() if set(cells) != {"-"}}
    print(tabulate(table, headers="keys", tablefmt="github", disable_numparse=True), end="\n\n")


def parity(fast: Any, plain: Any, batch: dict[str, Any], what: str) -> dict[str, float]:
    """Largest logit difference and smallest gradient cosine of both paths to a reference, on the same images.

    The reference is the plain path in fp32 on the same weights, in fp32 the plain trainer itself. All minimise its
    objective, which knows the classes that are compared. ParityError: beyond `TOLERANCES`.
    """
    precision, reference = fast.precision, plain
    if precision.name != "fp32":
        weights = rounded(plain.shared_clip, precision.weights_dtype)
        options = [*plain.options, f"TRAINER.{plain.node}.PREC", "fp32"]
        case = plain.train_classnames, "plain", plain.device.type, options
        reference = build_trainer(type(plain).__name__, weights, *case)
    furthest, least = TOLERANCES[precision.autocast_dtype or precision.tower_dtype]
    objective, found = reference.objective, {}
    compared = {"reference": reference, "fast": fast} | ({"plain": plain} if plain is not reference else {})
    for path, trainer in compared.items():
        trainer.model.prompt_learner.load_state_dict(fast.model.prompt_learner.state_dict())
        images, labels = trainer.parse_batch_train(batch)
        if hasattr(objective, "step"):
            objective.step = 0  # the same draw for all
        loss = objective(trainer.model, images, labels)
        parameters = [p for p in trainer.model.prompt_learner.parameters() if p.requires_grad]
        scale = 1.0 if trainer.scaler is None else GRADIENT_SCALE
        gradients = torch.autograd.grad(loss.total * scale, parameters)
        found[path] = loss.output.logits.detach(), gradients
    expected, slopes = found.pop("reference")
    row = {}
    for path, (logits, gradients) in found.items():
        difference = float((logits - expected).abs().max())
        pairs = [(a, b) for a, b in zip(gradients, slopes, strict=True) if a.numel() > 1]
        cosine = min(
            float(F.cosine_similarity(a.flatten().double(), b.flatten().double(), dim=0, eps=1e-30))
            for a, b in pairs
            if a.any() or b.any()  # a factor of a low-rank term whose other factor starts at zero has none
        )
        if not (difference <= furthest and cosine >= least):  # nor NaN
            raise ParityError(
                f"{what}: logits differ by {difference:.1e}, gradient cosine {cosine:.8f}: the paths do not agree"
                + (f" ({path} in {precision.name} with plain in fp32)" if len(found) > 1 else "")
            )
        prefix = "plain_" if path == "plain" else ""
        row |= {f"{prefix}max_logit_difference": difference, f"{prefix}min_gradient_cosine": cosine}
    return row


def extrapolate(few: float, many: float, classes: int) -> float:
    """Value at ``classes`` of the straight line through the values at the two sample counts."""
    return many + (classes - SAMPLES[1]) * (many - few) / (SAMPLES[1] - SAMPLES[0])


@contextlib.contextmanager
def only_classes(model: nn.Module, chosen: list[int]) -> Iterator[None]:
    """Inside, the model classifies over some of its classes, though it computes the features of all."""
    if hasattr(model, "features_of"):
        raise ValueError("ProDA's objective reads all classes: measure it with --plain-up-to at least --classes")
    text_features = model.text_features
    model.text_features = lambda prompts=None: text_features(prompts)[..., chosen, :]
    try:
        yield
    finally:
        del model.text_features


def profiled(work: Callable[[], Any], device: str) -> dict[str, float]:
    """What a device does for one call, warmed up before: how many "kernels" it runs, copies and fills included.

    And its "utilisation", the share of the time in which it computes rather than waits for the host to launch
    something, 0 to 1. On "cpu" an operator is a kernel.
    """
    kind = device.upper()
    with profile(activities=[getattr(ProfilerActivity, kind)]) as profiler:
        for _ in range(PROFILED_STEPS):
            work()
        if device == "cuda":
            torch.cuda.synchronize()
    ranges = [event.time_range for event in profiler.events() if event.device_type == getattr(DeviceType, kind)]
    share = covered_share((each.start, each.end) for each in ranges)
    return {"utilisation": share, "kernels": len(ranges) / PROFILED_STEPS}


def covered_share(intervals: Iterable[tuple[float, float]]) -> float:
    """Share of the span of some intervals that at least one of them covers; ValueError where there is none."""
    ordered = sorted(intervals)
    if not ordered:
        raise ValueError("the profiler saw no operation on the device")
    begin, reached, covered = ordered[0][0], ordered[0][0], 0.0
    for start, end in ordered:
        covered += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return covered / (reached - begin)
