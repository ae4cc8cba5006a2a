#!/usr/bin/env bash
# Table: MaPLe, PromptSRC and CoPrompt without and with BMIP's prompts, in the open-world protocol.
#
# Usage: scripts/tables/combinations.sh [--dry-run]
# Environment: TRAINERS="MaPLe MaPLe_BMIP PromptSRC PromptSRC_BMIP CoPrompt CoPrompt_BMIP", DATASETS=all.
# Each can be a flag instead, e.g. --seeds 1 2 3: TRAINERS (NAME or NAME=SETTING), DATASETS (files of configs/datasets,
#   "all": the published table's, "bundled": a small demonstration), SEEDS="1 2 3", DATA (the folder that holds one
#   folder per data set), OUTPUT=output, OPTS="KEY VALUE ..." for train.py, SWEEP (options of sweep.py, e.g. "--gpus 0 1
#   2 3" or "--launcher slurm"). --dry-run prints the commands. Finished runs are skipped.

# shellcheck source=scripts/common.sh
source "$(dirname "$0")/../common.sh"
# shellcheck source=scripts/tables/table.sh
source "$REPO/scripts/tables/table.sh"

TRAINERS="${TRAINERS:-MaPLe MaPLe_BMIP PromptSRC PromptSRC_BMIP CoPrompt CoPrompt_BMIP}"
read_flags -- "$@"
sweep open_world "$TRAINERS"
print_table open_world
