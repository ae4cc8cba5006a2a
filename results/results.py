"""Writes results.json, the record that a finished run leaves behind.

The schema and the reader live in `reporting.runs`, which needs no torch; this module fills in what only the running
process knows (environment, memory) and writes atomically, so that no reader ever sees half a file.
"""

from __future__ import annotations

import json
import math
import os
import platform
import re
import subprocess
import sys
from collections.abc import Mapping
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dassl.utils import atomic_write
from reporting.runs import SCHEMA_VERSION, read_results, validate_results

__all__ = ["collect_environment", "git_state", "peak_memory", "read_results", "write_results"]

PACKAGES = ("torch", "torchvision", "numpy", "clip-anytorch", "yacs")
REPOSITORY = Path(__file__).resolve().parent.parent


def write_results(path: str | Path, results: Mapping[str, Any]) -> dict[str, Any]:
    """Validate and write a run's results.

    Args:
        path: where, normally <output folder>/results.json; an existing file is replaced in one step.
        results: the record of the schema in `reporting.runs`; schema_version, status and finished_at are filled in.
            Configuration nodes, tuples, paths, numpy and one-element torch values are turned into plain JSON.

    Returns:
        The record as written.

    Raises:
        ValueError: a value is no JSON (NaN and infinity included), named by its key.
        ResultsError: a key is missing or of a wrong type.
    """
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    fixed = {"schema_version": SCHEMA_VERSION, "status": "finished"}
    record = _plain(fixed | dict(results) | fixed | {"finished_at": results.get("finished_at", now)}, where="results")
    validate_results(record, path)
    text = _dump(record) + "\n"
    with atomic_write(path, "w") as file:
        file.write(text)
    return record


def _dump(record: Mapping[str, Any]) -> str:
    """JSON with an entry per line, except that a list of whole numbers (a matrix's row) takes one line."""
    text = json.dumps(record, indent=1, ensure_ascii=False, allow_nan=False)
    # no string can hold the line break looked for here: JSON escapes it
    return re.sub(r"\[\n[\s\d,-]+\]", lambda match: f"[{' '.join(match[0][1:-1].split())}]", text)


def _plain(value: Any, where: str) -> Any:
    """`value` in JSON's own types."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, f"{where}[{index}]") for index, item in enumerate(value)]
    if isinstance(value, np.ndarray | torch.Tensor):
        return _plain(value.tolist(), where)
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{where} is {value}: a result that is not a number cannot be recorded")
    if value is None or isinstance(value, str | bool | int | float):
        return value
    raise ValueError(f"{where} is a {type(value).__name__}, which JSON cannot hold")


def collect_environment(device: str | torch.device, precision: str) -> dict[str, Any]:
    """What a run ran on: code revision, versions, device, threads, precision.

    Args:
        device: the device that the run computed on.
        precision: fp32, fp16, bf16 or amp.
    """
    revision, dirty = git_state()
    return {
        "git_revision": revision,
        "git_dirty": dirty,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: _version(name) for name in PACKAGES},
        "device": str(device),
        "device_name": _device_name(torch.device(device)),
        "threads": torch.get_num_threads(),
        "precision": precision,
    }


def git_state(folder: Path = REPOSITORY) -> tuple[str | None, bool | None]:
    """Revision of the code in `folder` and whether tracked files differ from it; (None, None) outside a checkout."""
    top = _git(folder, "rev-parse", "--show-toplevel")
    # a copy without its own .git inside somebody else's repository must not claim that one's revision
    if top is None or Path(top).resolve() != folder.resolve():
        return None, None
    status = _git(folder, "status", "--porcelain", "--untracked-files=no")
    return _git(folder, "rev-parse", "HEAD"), None if status is None else bool(status)


def _git(folder: Path, *arguments: str) -> str | None:
    # git's own variables (set inside hooks) would point it at another repository
    environment = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=30, env=environment
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpu_info = Path("/proc/cpuinfo")
    if cpu_info.is_file():
        for line in cpu_info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def peak_memory() -> dict[str, float | None]:
    """Peak memory of this process so far in MiB: resident (None on Windows) and CUDA (None without CUDA)."""
    cuda = torch.cuda.max_memory_allocated() / 2**20 if torch.cuda.is_available() else None
    return {"peak_rss_mib": peak_rss_mib(), "peak_cuda_mib": cuda}


def peak_rss_mib() -> float | None:
    """Peak resident memory of this process so far in MiB; None on Windows."""
    status = Path("/proc/self/status")
    if status.is_file():
        # Linux hands ru_maxrss on to a new program, which so begins with the peak of the one that started it
        for line in status.read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 2**10
    if sys.platform == "win32":
        return None
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Linux counts KiB, macOS bytes
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10
