#!/usr/bin/env bash
# Few-shot classification: train on some images of every class and test on all classes, seed by seed.
#
# Usage: scripts/few_shot.sh [--dry-run] TRAINER DATASET SHOTS [CFG]
#   TRAINER  a folder of configs/trainers; CFG is a file in it, by default the published setting
#   DATASET  a file of configs/datasets
#   SHOTS    images per class; 1, 2, 4, 8 and 16 in the published curves
# Environment: DATA, the folder that holds one folder per data set (not needed for the bundled data), OUTPUT=output,
#   SEEDS="1 2 3", OPTS="KEY VALUE ..." for train.py, e.g. OPTS="OPTIM.MAX_EPOCH 1". --dry-run prints the commands.
# Writes to OUTPUT/few_shot/TRAINER/CFG/DATASET/shotsSHOTS/seed1, 2, 3; the table of all runs there:
#   python -m reporting table --protocol few_shot output/few_shot
# Example: DATA=data scripts/few_shot.sh BMIP eurosat 4

# shellcheck source=scripts/common.sh
source "$(dirname "$0")/common.sh"
# shellcheck source=scripts/protocol.sh
source "$REPO/scripts/protocol.sh"

read -ra SEEDS_LIST <<<"${SEEDS:-1 2 3}"
read_positional TRAINER DATASET SHOTS [CFG] -- "$@"
run_protocol few_shot --datasets "$DATASET" --seeds "${SEEDS_LIST[@]}" --shots "$SHOTS"
