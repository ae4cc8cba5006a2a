#!/usr/bin/env bash
# Cross-dataset transfer, second step: test what xd_train.sh trained on another data set.
#
# Usage: scripts/xd_test.sh [--dry-run] TRAINER DATASET SEED [CFG]
#   TRAINER  a folder of configs/trainers; CFG is a file in it, by default the published setting
#   DATASET  a file of configs/datasets
# Environment: DATA, the folder that holds one folder per data set (not needed for the bundled data), OUTPUT=output,
#   SHOTS=16, OPTS="KEY VALUE ..." for train.py, e.g. OPTS="OPTIM.MAX_EPOCH 1". --dry-run prints the command.
#   SOURCE=imagenet, the data set that xd_train.sh trained on.
# Writes to OUTPUT/cross_dataset/TRAINER/CFG/DATASET/shots16/seedSEED; the table of all runs there:
#   python -m reporting table --protocol cross_dataset output/cross_dataset
# Example: DATA=data scripts/xd_test.sh BMIP caltech101 1

# shellcheck source=scripts/common.sh
source "$(dirname "$0")/common.sh"
# shellcheck source=scripts/protocol.sh
source "$REPO/scripts/protocol.sh"

SOURCE="${SOURCE:-imagenet}"
read_positional TRAINER DATASET SEED [CFG] -- "$@"
run_protocol cross_dataset --source "$SOURCE" --datasets "$DATASET" --seeds "$SEED" --shots "$SHOTS" --stage evaluate
