#!/usr/bin/env bash
# The benchmark in miniature: the papers' tables on nine small data sets of drawings and the bundled model mini_clip
# (docs/miniature.md). Open-world (with base-to-new), cross-dataset and domain generalization; the few-shot curve and
# BMIP's ablations on three of the sets.
#
# Usage: scripts/miniature.sh [--quick] [--dry-run] [TRAINER...]
#   TRAINER      ZeroshotCLIP CoOp MaPLe BMIP unless others are named; all: every one that the table can test
#   --quick      the open-world table only: 4 shots, three data sets
#   --dry-run    print the commands only
# Environment: SEEDS="1 2 3", OUTPUT=output/miniature, PROCESSES, by default one per CPU core: they share the runs.
source "$(dirname "$0")/common.sh"
read_arguments --quick -- "$@"
step bash scripts/setup.sh
[ "${#WORDS[@]}" -gt 0 ] || WORDS=(ZeroshotCLIP CoOp MaPLe BMIP)
THREE="mini_vehicles mini_devices mini_arrows"
OUTPUT="${OUTPUT:-output/miniature}"
PROCESSES="${PROCESSES:-$(getconf _NPROCESSORS_ONLN)}"
export OMP_NUM_THREADS=1 CUDA_VISIBLE_DEVICES="${CUDA_VISIBLE_DEVICES-}"
OTHERS=() FAILED=0
trap '[ "${#OTHERS[@]}" = 0 ] || kill "${OTHERS[@]}" 2>/dev/null || true' EXIT

make() { # table, data sets, further options of sweep.py
    local command=("$PYTHON" sweep.py --table "$1" --datasets $2 --seeds ${SEEDS:-1 2 3} --output "$OUTPUT")
    local process
    command+=("${@:3}")
    if [ -n "$DRY_RUN" ]; then step "${command[@]}"; return; fi
    for ((process = 1; process < PROCESSES; process++)); do
        "${command[@]}" >/dev/null 2>&1 &
        OTHERS+=($!)
    done
    printf '\n== %s: %s\n' "$1" "$2"
    "${command[@]}" || FAILED=$?
    [ "$FAILED" -lt 128 ] || exit "$FAILED" # stopped by a signal
    wait ${OTHERS[@]+"${OTHERS[@]}"} || true # what failed there is in this process's list
    OTHERS=()
}

METHODS=(--trainers "${WORDS[@]}")
if [[ " ${FLAGS[*]:-} " = *" --quick "* ]]; then
    make open_world "$THREE" "${METHODS[@]}" --shots 4
    exit "$FAILED"
fi
make open_world mini "${METHODS[@]}"
make cross_dataset mini "${METHODS[@]}"
make domain_generalization mini "${METHODS[@]}"
make few_shot_curve "$THREE" "${METHODS[@]}"
for ablation in ablation_{aggregation,depth,length,sharing}; do # apart: their runs are open-world runs, too
    OUTPUT="$OUTPUT/$ablation" make "$ablation" "$THREE"
done
exit "$FAILED"
