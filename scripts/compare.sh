#!/usr/bin/env bash
# Train the given methods on the base classes of one data set, evaluate each on base, new and all classes, and print
# them side by side: the same images, protocol and seeds for all of them.
#
# Usage: scripts/compare.sh [--overwrite] [--dry-run] DATASET SEED TRAINER[=CONFIG]...
#   DATASET      a file of configs/datasets; with bundled data, e.g. digits, every method's tiny config
#   SEED         one seed, or several in quotes: "1 2 3"
#   TRAINER      a folder of configs/trainers; CONFIG is a file in it, by default the published one for ViT-B/16
#   --overwrite  redo finished runs, which are skipped otherwise
#   --dry-run    print the commands only
# Environment: DATA, the folder that holds one folder per data set (needed unless DATASET is bundled), SHOTS=16,
#   OUTPUT=output/compare, CFG_<Trainer>=CONFIG as with TRAINER=CONFIG, OPTS="KEY VALUE ..." for train.py.
# Example: DATA=data scripts/compare.sh eurosat "1 2 3" CoOp MaPLe BMIP BMIP=vit_b16_c2_ep10_batch4_2ctx_official
source "$(dirname "$0")/common.sh"
read_arguments --overwrite -- "$@"
[ "${#WORDS[@]}" -ge 3 ] || wrong "needs DATASET, SEED and at least one TRAINER"
[ -n "${WORDS[1]// /}" ] || wrong "no seed given"
step bash scripts/setup.sh
DATASETS="${WORDS[0]}" SEEDS="${WORDS[1]}" TRAINERS="${WORDS[*]:2}"
table compare SHOTS -- --retry ${FLAGS[@]+"${FLAGS[@]}"}
