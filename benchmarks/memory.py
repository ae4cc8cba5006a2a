"""Peak memory of a training step, measured in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import torch

from benchmarks.setup import build_trainer, random_batch, random_clip
from results.schema import peak_rss_mib


def training_memory(
    backbone: str,
    trainer: str,
    n_classes: int,
    path: str,
    batch: int,
    options: list[str],
    device: str = "cpu",
    resolution: int | None = None,
) -> float:
    """MiB that two training steps add to the peak of the process, or of CUDA's allocator.

    It is a fresh process, since a process's peak never falls.
    """
    arguments = json.dumps([backbone, trainer, n_classes, path, batch, options, device, resolution])
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.memory", arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"the measured process failed ({done.returncode}): {done.stderr.strip()[-500:]}")
    return float(done.stdout.strip().splitlines()[-1])


def _peak_mib(device: str) -> float:
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    return peak_rss_mib()


def _measure(
    backbone: str,
    name: str,
    n_classes: int,
    path: str,
    batch: int,
    options: list[str],
    device: str,
    resolution: int | None,
) -> float:
    torch.set_num_threads(1)
    clip_model = random_clip(backbone, resolution=resolution)
    trainer: Any = build_trainer(name, clip_model, n_classes, path, device, options)
    trainer.set_model_mode("train")
    before = _peak_mib(device)
    for step in range(2):
        trainer.forward_backward(random_batch(trainer, batch, seed=step))
    return _peak_mib(device) - before


if __name__ == "__main__":
    print(_measure(*json.loads(sys.argv[1])))
