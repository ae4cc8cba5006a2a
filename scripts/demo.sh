#!/usr/bin/env bash
# Set up, then train CoOp, MaPLe and BMIP on the base classes of two of the small data sets of docs/miniature.md over three
# seeds, evaluate each on base, new and all classes beside zero-shot CLIP, and print a table. About two minutes of work.
# Usage: scripts/demo.sh [--all] [--overwrite] [--dry-run]
#   --all        every method, not only these four; --overwrite: redo finished runs; --dry-run: print the commands only
# Environment: SEEDS="1 2 3", SHOTS=16, OUTPUT=output/demo, CFG_<Trainer>=CONFIG for another config than the default,
#   e.g. CFG_CoOp=my_setting, OPTS="KEY VALUE ..." for train.py, e.g. OPTS="OPTIM.MAX_EPOCH 1".
source "$(dirname "$0")/common.sh"
read_arguments --all --overwrite -- "$@"
[ "${#WORDS[@]}" = 0 ] || wrong "unexpected argument ${WORDS[0]}"
unset TRAINERS DATASETS DATA
step bash scripts/setup.sh
table demo SHOTS -- --retry ${FLAGS[@]+"${FLAGS[@]/#--all/--trainers=all}"}
