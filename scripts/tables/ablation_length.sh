#!/usr/bin/env bash
# Table: how many prompt tokens there are per layer and tower.
#
# Usage: scripts/tables/ablation_length.sh [--dry-run]
# Environment: TRAINERS=BMIP (MaPLe, CoPrompt and the combinations work, too), DATASETS=all, LENGTHS="1 2 4 6 8".
# Each can be a flag instead, e.g. --seeds 1 2 3: TRAINERS (NAME or NAME=SETTING), DATASETS (files of configs/datasets,
#   "all": the published table's, "bundled": a small demonstration), SEEDS="1 2 3", DATA (the folder that holds one
#   folder per data set), OUTPUT=output, OPTS="KEY VALUE ..." for train.py, SWEEP (options of sweep.py, e.g. "--gpus 0 1
#   2 3" or "--launcher slurm"). --dry-run prints the commands. Finished runs are skipped.

# shellcheck source=scripts/common.sh
source "$(dirname "$0")/../common.sh"
# shellcheck source=scripts/tables/table.sh
source "$REPO/scripts/tables/table.sh"

TRAINERS="${TRAINERS:-BMIP}"
LENGTHS="${LENGTHS:-1 2 4 6 8}"
read_flags LENGTHS -- "$@"
read -ra values <<<"$LENGTHS"
for trainer in $TRAINERS; do
    key="$(option_key "$trainer" N_CTX)"
    sweep open_world "$trainer" --vary "$key" "${values[@]}"
done
print_table open_world
