"""Stands in for train.py in tests of sweeps: takes its options, starts at once and does what --behave says.

finish (default), fail, stopped (by a signal, at the first start), nothing (no results), sleep (for a minute), or twice
(sleeps at the first start, finishes at the second).
"""

import argparse
import json
import os
import signal
import sys
import time
from pathlib import Path


def results(config):
    return {
        "schema_version": 1,
        "status": "finished",
        "protocol": "open_world",
        "trainer": "BMIP",
        "setting": "s",
        "dataset": "Digits",
        "backbone": "bundled:tiny_clip",
        "seed": 1,
        "init_seed": 1,
        "shots": 16,
        "train_classes": "base",
        "selection_rule": "last epoch",
        "config": config,
        "environment": {variable: os.environ.get(variable) for variable in ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS")},
        "data": {},
        "model": {"trainable_parameters": 1},
        "metrics": {"base": {"accuracy": 50.0}},
        "history": [],
        "gates": None,
        "timing": {"total": 10.0},
        "memory": {},
        "finished_at": "2026-01-01T00:00:00+00:00",
    }


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--output-dir", required=True)
    parser.add_argument("--behave", default="finish")
    args, _ = parser.parse_known_args()
    behave(args, Path(args.output_dir))


def behave(args, folder):
    folder.mkdir(parents=True, exist_ok=True)
    starts = len(list(folder.glob("start*")))
    (folder / f"start{starts}").touch()
    print(f"started {folder}", flush=True)
    if args.behave == "sleep" or (args.behave == "twice" and starts == 0):
        signal.signal(signal.SIGTERM, lambda *_: (print("ended politely", flush=True), sys.exit(3)))
        time.sleep(60)
    if args.behave == "fail":
        print("error: the data are not there", file=sys.stderr)
        sys.exit(2)
    if args.behave == "stopped" and starts == 0:
        sys.exit(75)
    if args.behave != "nothing":
        config = {"DATASET": {"NUM_SHOTS": 16}, "OPTIM": {"MAX_EPOCH": 1}, "TRAINER": {"NAME": "BMIP"}, "SEED": 1}
        temporary = folder / "results.json.tmp"
        temporary.write_text(json.dumps(results(config)))
        temporary.replace(folder / "results.json")


if __name__ == "__main__":
    main()
