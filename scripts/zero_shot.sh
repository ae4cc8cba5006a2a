#!/usr/bin/env bash
# Zero-shot classification with TRAINER=ZeroshotCLIP or ZeroshotCLIP2: test CLIP, by default ViT-B/16, on all classes.
# Usage: scripts/zero_shot.sh [--dry-run] DATASET [CFG], e.g. DATA=data scripts/zero_shot.sh eurosat
source "$(dirname "$0")/common.sh"
TRAINER="${TRAINER:-ZeroshotCLIP}" SEED=1
positional DATASET [CFG] -- "$@"
protocol zero_shot
