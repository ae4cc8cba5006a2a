#!/usr/bin/env bash
# Zero-shot classification with hand-written prompts: test CLIP on all classes of a data set.
#
# Usage: scripts/zero_shot.sh [--dry-run] DATASET [CFG]
#   DATASET  a file of configs/datasets
#   CFG      the backbone's file in configs/trainers/ZeroshotCLIP, by default ViT-B/16's
# Environment: DATA, the folder that holds one folder per data set (not needed for the bundled data), OUTPUT=output,
#   TRAINER=ZeroshotCLIP or ZeroshotCLIP2 (an ensemble of prompts), OPTS="KEY VALUE ..." for train.py.
# Writes to OUTPUT/zero_shot/TRAINER/CFG/DATASET/shots16/seed1; the table of all runs there:
#   python -m reporting table --protocol zero_shot output/zero_shot
# Example: DATA=data scripts/zero_shot.sh eurosat

# shellcheck source=scripts/common.sh
source "$(dirname "$0")/common.sh"
# shellcheck source=scripts/protocol.sh
source "$REPO/scripts/protocol.sh"

TRAINER="${TRAINER:-ZeroshotCLIP}"
read_positional DATASET [CFG] -- "$@"
run_protocol zero_shot --datasets "$DATASET" --seeds 1 --shots "$SHOTS"
