"""Frozen values of the upstream projects' code, and how to compare with them (README.md says how they were made).

reference = load_reference("maple_depth3")
reference.logits, reference.loss                      # what upstream computes
reference.gradients["prompt_learner.ctx"].relative_error(ctx.grad)
"""

import base64
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .small_clip import named_uniform

FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class GradientReference:
    """Upstream's gradient of one trainable tensor: whole when small, else samples and two random projections."""

    name: str
    shape: tuple[int, ...]
    norm: float
    probe_dots: tuple[float, float]
    stride: int
    samples: torch.Tensor
    full: torch.Tensor | None

    def relative_error(self, gradient: torch.Tensor) -> float:
        """Norm of (gradient - reference) over the norm of the reference; an estimate where only samples are kept.

        Raises:
            ValueError: the shapes differ.
        """
        if tuple(gradient.shape) != self.shape:
            raise ValueError(f"gradient of {self.name} has shape {tuple(gradient.shape)}, the reference {self.shape}")
        gradient = gradient.detach().cpu().double()
        if self.full is not None:
            return float((gradient - self.full).norm()) / self.norm
        samples = gradient.reshape(-1)[:: self.stride][: len(self.samples)]
        sampled = float((samples - self.samples).norm()) * (gradient.numel() / len(samples)) ** 0.5
        # A projection on a random direction of variance 1 has the size of the projected error's norm.
        projected = (
            abs(dot - kept) for dot, kept in zip(probe_dots(self.name, gradient), self.probe_dots, strict=True)
        )
        return max(sampled, *projected) / self.norm


@dataclass(frozen=True)
class Reference:
    """One upstream run: its inputs, its results, and the whole file as `record`.

    `gradients` is keyed by upstream's parameter name; `without_gradient` names the trainable tensors that get none.
    """

    name: str
    class_names: tuple[str, ...]
    labels: torch.Tensor
    logits: torch.Tensor
    loss: float
    gradients: dict[str, GradientReference]
    without_gradient: tuple[str, ...]
    record: dict[str, Any]

    @property
    def settings(self) -> dict[str, Any]:
        """Upstream's config values, by dotted node name."""
        return self.record["settings"]

    @property
    def trainable_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every tensor upstream marks trainable, those without gradient included."""
        return {name: tuple(entry["shape"]) for name, entry in self.record["trainable"].items()}


def load_record(name: str) -> dict[str, Any]:
    """The file `<name>.json` as it is."""
    return json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))


def load_reference(name: str) -> Reference:
    """The reference run `name` (a file's name without its ending) of a method that trains."""
    record = load_record(name)
    given = {key: entry for key, entry in record["trainable"].items() if entry["gradient"] == "given"}
    return Reference(
        name=name,
        class_names=tuple(record["class_names"]),
        labels=torch.tensor(record["labels"]),
        logits=torch.tensor(record["logits"]),
        loss=record["loss"],
        gradients={key: _gradient(key, entry) for key, entry in given.items()},
        without_gradient=tuple(record["without_gradient"]),
        record=record,
    )


def reference_names(prefix: str = "") -> list[str]:
    """Names of the training runs on file that begin with `prefix`, sorted."""
    names = sorted(path.stem for path in FOLDER.glob(f"{prefix}*.json"))
    return [name for name in names if "trainable" in load_record(name)]


def probe_dots(name: str, gradient: torch.Tensor) -> list[float]:
    """Dot products of a gradient with the two fixed random vectors that belong to the parameter `name`."""
    probes = (named_uniform(f"probe{index}/{name}", tuple(gradient.shape)).double() for index in (0, 1))
    return [float((gradient.double() * probe).sum()) for probe in probes]


def _gradient(name: str, entry: dict[str, Any]) -> GradientReference:
    shape = tuple(entry["shape"])
    encoded = entry.get("full_float32_base64")
    full = None
    if encoded is not None:
        numbers = np.frombuffer(base64.b64decode(encoded), dtype="<f4").astype(np.float64)
        full = torch.from_numpy(numbers).reshape(shape)
    return GradientReference(
        name=name,
        shape=shape,
        norm=entry["norm"],
        probe_dots=tuple(entry["probe_dots"]),
        stride=entry["sample_stride"],
        samples=torch.tensor(entry["samples"], dtype=torch.float64),
        full=full,
    )
