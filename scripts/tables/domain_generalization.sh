#!/usr/bin/env bash
# Table: domain generalization. Train on all classes of ImageNet; accuracy there and on ImageNetV2, -Sketch, -A and -R.
# The training runs are those of cross_dataset.sh.
#
# Usage: scripts/tables/domain_generalization.sh [--dry-run]
# Environment: TRAINERS="ZeroshotCLIP CoOp CoCoOp MaPLe PromptSRC BMIP", DATASETS=all.
# Each can be a flag instead, e.g. --seeds 1 2 3: TRAINERS (NAME or NAME=SETTING), DATASETS (files of configs/datasets,
#   "all": the published table's, "bundled": a small demonstration), SEEDS="1 2 3", DATA (the folder that holds one
#   folder per data set), OUTPUT=output, OPTS="KEY VALUE ..." for train.py, SWEEP (options of sweep.py, e.g. "--gpus 0 1
#   2 3" or "--launcher slurm"). --dry-run prints the commands. Finished runs are skipped.

# shellcheck source=scripts/common.sh
source "$(dirname "$0")/../common.sh"
# shellcheck source=scripts/tables/table.sh
source "$REPO/scripts/tables/table.sh"

TRAINERS="${TRAINERS:-ZeroshotCLIP CoOp CoCoOp MaPLe PromptSRC BMIP}"
read_flags -- "$@"
sweep domain_generalization "$TRAINERS"
print_table domain_generalization
