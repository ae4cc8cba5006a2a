#!/usr/bin/env bash
# Table: how own and foreign prompts meet in BMIP. The gate against simple aggregation, one direction and none.
#
# Usage: scripts/tables/ablation_aggregation.sh [--dry-run]
# Environment: TRAINERS=BMIP (or its combinations), DATASETS=all,
#   AGGREGATORS="gate add mean joint own text_to_vision vision_to_text".
# Each can be a flag instead, e.g. --seeds 1 2 3: TRAINERS (NAME or NAME=SETTING), DATASETS (files of configs/datasets,
#   "all": the published table's, "bundled": a small demonstration), SEEDS="1 2 3", DATA (the folder that holds one
#   folder per data set), OUTPUT=output, OPTS="KEY VALUE ..." for train.py, SWEEP (options of sweep.py, e.g. "--gpus 0 1
#   2 3" or "--launcher slurm"). --dry-run prints the commands. Finished runs are skipped.

# shellcheck source=scripts/common.sh
source "$(dirname "$0")/../common.sh"
# shellcheck source=scripts/tables/table.sh
source "$REPO/scripts/tables/table.sh"

TRAINERS="${TRAINERS:-BMIP}"
AGGREGATORS="${AGGREGATORS:-gate add mean joint own text_to_vision vision_to_text}"
read_flags AGGREGATORS -- "$@"
read -ra values <<<"$AGGREGATORS"
sweep open_world "$TRAINERS" --vary TRAINER.BMIP.AGGREGATOR "${values[@]}"
print_table open_world
