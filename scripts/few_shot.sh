#!/usr/bin/env bash
# Few-shot classification: train on SHOTS images of every class and test on all classes, for each of SEEDS="1 2 3".
# Usage: scripts/few_shot.sh [--dry-run] TRAINER DATASET SHOTS [CFG], e.g. DATA=data scripts/few_shot.sh BMIP eurosat 4
source "$(dirname "$0")/common.sh"
SEED=""
positional TRAINER DATASET SHOTS [CFG] -- "$@"
protocol few_shot
