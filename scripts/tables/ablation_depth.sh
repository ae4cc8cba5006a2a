#!/usr/bin/env bash
# Table: how many layers are prompted.
#
# Usage: scripts/tables/ablation_depth.sh [--dry-run]
# Environment: TRAINERS=BMIP (MaPLe, CoPrompt and the combinations work, too), DATASETS=all,
#   DEPTHS="1 3 6 9 12" (bundled: "1 2 3 4").
# Each can be a flag instead, e.g. --seeds 1 2 3: TRAINERS (NAME or NAME=SETTING), DATASETS (files of configs/datasets,
#   "all": the published table's, "bundled": a small demonstration), SEEDS="1 2 3", DATA (the folder that holds one
#   folder per data set), OUTPUT=output, OPTS="KEY VALUE ..." for train.py, SWEEP (options of sweep.py, e.g. "--gpus 0 1
#   2 3" or "--launcher slurm"). --dry-run prints the commands. Finished runs are skipped.

# shellcheck source=scripts/common.sh
source "$(dirname "$0")/../common.sh"
# shellcheck source=scripts/tables/table.sh
source "$REPO/scripts/tables/table.sh"

TRAINERS="${TRAINERS:-BMIP}"
read_flags DEPTHS -- "$@"
case "$DATASETS" in
    bundled | digits* | emoji*) DEPTHS="${DEPTHS:-1 2 3 4}" ;;
esac
read -ra values <<<"${DEPTHS:-1 3 6 9 12}"
for trainer in $TRAINERS; do
    key="$(option_key "$trainer" PROMPT_DEPTH)"
    sweep open_world "$trainer" --vary "$key" "${values[@]}"
done
print_table open_world
