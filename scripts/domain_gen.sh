#!/usr/bin/env bash
# Domain generalization: test what xd_train.sh trained on images of the same classes in another domain.
#
# Usage: scripts/domain_gen.sh [--dry-run] TRAINER DATASET SEED [CFG]
#   TRAINER  a folder of configs/trainers; CFG is a file in it, by default the published setting
#   DATASET  a file of configs/datasets: imagenet, imagenetv2, imagenet_sketch, imagenet_a or imagenet_r
# Environment: DATA, the folder that holds one folder per data set (not needed for the bundled data), OUTPUT=output,
#   SHOTS=16, OPTS="KEY VALUE ..." for train.py, e.g. OPTS="OPTIM.MAX_EPOCH 1". --dry-run prints the command.
#   SOURCE=imagenet, the data set that xd_train.sh trained on.
# Writes to OUTPUT/domain_generalization/TRAINER/CFG/DATASET/shots16/seedSEED; the table of all runs there:
#   python -m reporting table --protocol domain_generalization output/domain_generalization
# Example: DATA=data scripts/domain_gen.sh BMIP imagenet_r 1

# shellcheck source=scripts/common.sh
source "$(dirname "$0")/common.sh"
# shellcheck source=scripts/protocol.sh
source "$REPO/scripts/protocol.sh"

SOURCE="${SOURCE:-imagenet}"
read_positional TRAINER DATASET SEED [CFG] -- "$@"
run_protocol domain_generalization --source "$SOURCE" --datasets "$DATASET" --seeds "$SEED" --shots "$SHOTS" \
    --stage evaluate
