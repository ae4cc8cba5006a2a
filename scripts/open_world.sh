#!/usr/bin/env bash
# Train on the base classes of a data set; test on the base, the new and all classes.
#
# Usage: scripts/open_world.sh [--dry-run] TRAINER DATASET SEED [CFG]
#   TRAINER  a folder of configs/trainers; CFG is a file in it, by default the published setting
#   DATASET  a file of configs/datasets
# Environment: DATA, the folder that holds one folder per data set (not needed for the bundled data), OUTPUT=output,
#   SHOTS=16, OPTS="KEY VALUE ..." for train.py, e.g. OPTS="OPTIM.MAX_EPOCH 1". --dry-run prints the command.
# Writes to OUTPUT/open_world/TRAINER/CFG/DATASET/shots16/seedSEED; the table of all runs there:
#   python -m reporting table --protocol open_world output/open_world
# Example: DATA=data scripts/open_world.sh BMIP eurosat 1

# shellcheck source=scripts/common.sh
source "$(dirname "$0")/common.sh"
# shellcheck source=scripts/protocol.sh
source "$REPO/scripts/protocol.sh"

read_positional TRAINER DATASET SEED [CFG] -- "$@"
run_protocol open_world --datasets "$DATASET" --seeds "$SEED" --shots "$SHOTS"
