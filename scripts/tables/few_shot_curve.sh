#!/usr/bin/env bash
# Table: accuracy over all classes against the number of training images per class.
#
# Usage: scripts/tables/few_shot_curve.sh [--dry-run]
# Environment: TRAINERS="ZeroshotCLIP CoOp CoCoOp MaPLe PromptSRC BMIP", DATASETS=all, SHOTS="1 2 4 8 16".
# Each can be a flag instead, e.g. --seeds 1 2 3: TRAINERS (NAME or NAME=SETTING), DATASETS (files of configs/datasets,
#   "all": the published table's, "bundled": a small demonstration), SEEDS="1 2 3", DATA (the folder that holds one
#   folder per data set), OUTPUT=output, OPTS="KEY VALUE ..." for train.py, SWEEP (options of sweep.py, e.g. "--gpus 0 1
#   2 3" or "--launcher slurm"). --dry-run prints the commands. Finished runs are skipped.

# shellcheck source=scripts/common.sh
source "$(dirname "$0")/../common.sh"
# shellcheck source=scripts/tables/table.sh
source "$REPO/scripts/tables/table.sh"

TRAINERS="${TRAINERS:-ZeroshotCLIP CoOp CoCoOp MaPLe PromptSRC BMIP}"
SHOTS="${SHOTS:-1 2 4 8 16}"
read_flags SHOTS -- "$@"
read -ra values <<<"$SHOTS"
sweep few_shot "$TRAINERS" --shots "${values[@]}"
print_table few_shot
