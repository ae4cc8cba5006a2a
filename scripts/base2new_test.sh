#!/usr/bin/env bash
# Test what base2new_train.sh trained: base classes among the base classes, new ones among the new ones.
#
# Usage: scripts/base2new_test.sh [--dry-run] TRAINER DATASET SEED [CFG]
#   TRAINER  a folder of configs/trainers; CFG is a file in it, by default the published setting
#   DATASET  a file of configs/datasets
# Environment: DATA, the folder that holds one folder per data set (not needed for the bundled data), OUTPUT=output,
#   SHOTS=16, OPTS="KEY VALUE ..." for train.py, e.g. OPTS="OPTIM.MAX_EPOCH 1". --dry-run prints the command.
# Writes to OUTPUT/base2new/test_new/DATASET/shots_16/TRAINER/CFG/seedSEED; the table of all runs there:
#   python -m reporting table --protocol base_to_new output/base2new/test_new
# Example: DATA=data scripts/base2new_test.sh BMIP eurosat 1

# shellcheck source=scripts/common.sh
source "$(dirname "$0")/common.sh"
# shellcheck source=scripts/protocol.sh
source "$REPO/scripts/protocol.sh"

read_positional TRAINER DATASET SEED [CFG] -- "$@"
run_protocol base2new_test --datasets "$DATASET" --seeds "$SEED" --shots "$SHOTS"
