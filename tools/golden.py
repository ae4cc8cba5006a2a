"""What every method gives on the bundled digits, to compare two versions of the code.

    python -m tools.golden make before.json      in the version that is right
    python -m tools.golden make after.json       in the other one
    python -m tools.golden compare before.json after.json

Every tiny setting and the variants below train for two epochs on the CPU. Kept are the metrics, the history, the log's
lines and a digest of the weights. Values of floating point differ between machines: compare on one.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parent.parent
VARIANTS = {
    "CoOp/csc": ["TRAINER.COOP.CSC", "True", "TEST.CLASS_SPLITS", "('base',)"],
    "CoOp/middle": ["TRAINER.COOP.CLASS_TOKEN_POSITION", "middle"],
    "CoOp/front": ["TRAINER.COOP.CLASS_TOKEN_POSITION", "front"],
    "VPT/shallow": ["TRAINER.VPT.PROMPT_DEPTH_VISION", "1"],
    "IVLP/text": ["TRAINER.IVLP.PROMPT_DEPTH_VISION", "0"],
    "BMIP/official": ["TRAINER.BMIP.GATE", "official"],
    "BMIP/per_layer": ["TRAINER.BMIP.SHARE_PARAMETER_TEXT", "False", "TRAINER.BMIP.SHARE_PARAMETER_VISUAL", "False"],
    "BMIP/joint": ["TRAINER.BMIP.AGGREGATOR", "joint"],
}
OPTIONS = [
    *("DATASET.NUM_SHOTS", "4", "DATASET.SUBSAMPLE_CLASSES", "base", "TEST.CLASS_SPLITS", "('base','new','all')"),
    *("OPTIM.MAX_EPOCH", "2", "OPTIM.WARMUP_EPOCH", "1", "DATALOADER.NUM_WORKERS", "0", "TRAIN.PATIENCE", "0"),
]
METRICS = ("accuracy", "macro_f1", "error_rate", "confusion", "open_world")
TOLERANCE = 2e-4  # of sums in another order
NUMBER = r"\d+\.\d+(e[-+]\d+)?"


def run(name: str) -> dict[str, Any]:
    """What a setting, "TRAINER" or "TRAINER/variant", gives."""
    trainer = name.partition("/")[0]
    config = min(ROOT.glob(f"configs/trainers/{trainer}/tiny*.yaml"))
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "train.py", "--root", "assets", "--seed", "1", "--device", "cpu"]
        command += ["--trainer", trainer, "--config-file", str(config), "--output-dir", folder]
        command += ["--dataset-config-file", "configs/datasets/digits.yaml", *OPTIONS, *VARIANTS.get(name, ())]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{name} ended with status {done.returncode}: {done.stderr[-500:]}")
        results = json.loads(Path(folder, "results.json").read_text(encoding="utf-8"))
        weights = {path.name: digest(path) for path in sorted(Path(folder, "prompt_learner").glob("model*"))}
    print(name, flush=True)
    lines = [line for line in done.stdout.splitlines() if re.match(r"epoch \[|=> result|\* \w+:|Deploy|Finish", line)]
    return {
        "metrics": {split: {k: m[k] for k in METRICS if k in m} for split, m in results["metrics"].items()},
        "history": [{k: v for k, v in epoch.items() if not re.search("sec|data", k)} for epoch in results["history"]],
        "log": [re.sub(r"(time|data) \S+ \(\S+\)|eta \S+", "", line) for line in lines],
        "weights": weights,
    }


def digest(path: Path) -> str:
    """SHA-256 of a checkpoint's trained tensors."""
    sha = hashlib.sha256()
    for name, tensor in sorted(torch.load(path, weights_only=True)["state_dict"].items()):
        sha.update(name.encode() + tensor.contiguous().numpy().tobytes())
    return sha.hexdigest()


def differences(one: Any, other: Any, where: str = "") -> list[str]:
    """Where two values differ, numbers by more than rounding; the log's numbers are those of the history."""
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        one, other = dict(enumerate(one)), dict(enumerate(other))
    if isinstance(one, dict) and isinstance(other, dict):
        keys = dict.fromkeys([*one, *other])
        return [line for key in keys for line in differences(one.get(key), other.get(key), f"{where}/{key}")]
    if isinstance(one, float) and isinstance(other, float):
        same = math.isclose(one, other, rel_tol=TOLERANCE, abs_tol=TOLERANCE)
    elif isinstance(one, str) and isinstance(other, str) and "/log" in where:
        same = re.sub(NUMBER, "#", one) == re.sub(NUMBER, "#", other)
    else:
        same = one == other
    return [] if same else [f"{where}: {one!r} -> {other!r}"]


def main() -> int:
    """Command line; the exit status is 1 where metrics, history or log lines differ. Weights are only reported."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("make").add_argument("out", type=Path)
    compare = commands.add_parser("compare")
    compare.add_argument("before", type=Path)
    compare.add_argument("after", type=Path)
    args = parser.parse_args()
    if args.command == "make":
        names = sorted(path.parent.name for path in ROOT.glob("configs/trainers/*/tiny*.yaml"))
        given = {name: run(name) for name in dict.fromkeys([*names, *VARIANTS])}
        args.out.write_text(json.dumps(given, indent=1), encoding="utf-8")
        return 0
    lines = differences(*(json.loads(path.read_text(encoding="utf-8")) for path in (args.before, args.after)))
    print("\n".join(lines) or "all the same, weights to the bit")
    return 1 if any("/weights/" not in line for line in lines) else 0


if __name__ == "__main__":
    sys.exit(main())
