#!/usr/bin/env bash
# Table: one projection for all layers or one per layer, from text to vision and from vision to text.
#
# Usage: scripts/tables/ablation_sharing.sh [--dry-run]
# Environment: TRAINERS=BMIP (or its combinations), DATASETS=all, SHARE_TEXT="True False", SHARE_VISUAL="True False".
# Each can be a flag instead, e.g. --seeds 1 2 3: TRAINERS (NAME or NAME=SETTING), DATASETS (files of configs/datasets,
#   "all": the published table's, "bundled": a small demonstration), SEEDS="1 2 3", DATA (the folder that holds one
#   folder per data set), OUTPUT=output, OPTS="KEY VALUE ..." for train.py, SWEEP (options of sweep.py, e.g. "--gpus 0 1
#   2 3" or "--launcher slurm"). --dry-run prints the commands. Finished runs are skipped.

# shellcheck source=scripts/common.sh
source "$(dirname "$0")/../common.sh"
# shellcheck source=scripts/tables/table.sh
source "$REPO/scripts/tables/table.sh"

TRAINERS="${TRAINERS:-BMIP}"
SHARE_TEXT="${SHARE_TEXT:-True False}"
SHARE_VISUAL="${SHARE_VISUAL:-True False}"
read_flags SHARE_TEXT SHARE_VISUAL -- "$@"
read -ra text <<<"$SHARE_TEXT"
read -ra visual <<<"$SHARE_VISUAL"
sweep open_world "$TRAINERS" --vary TRAINER.BMIP.SHARE_PARAMETER_TEXT "${text[@]}" \
    --vary TRAINER.BMIP.SHARE_PARAMETER_VISUAL "${visual[@]}"
print_table open_world
