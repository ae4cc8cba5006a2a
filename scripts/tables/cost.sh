#!/usr/bin/env bash
# Table: what the methods cost. Trained parameters, GFLOPs, memory and throughput; on a random CLIP of the size, so that
# neither data nor weights are needed.
#
# Usage: scripts/tables/cost.sh [--dry-run]
# Environment: TRAINERS="CoOp CoCoOp KgCoOp MaPLe PromptSRC BMIP" (NAME or NAME=SETTING), BACKBONE=ViT-B/16,
#   CLASSES=100, DEVICE=cpu or cuda, PRECISION=fp32, ROUNDS=5, MEASURES="train eval memory", OUTPUT=output.
# Each can be a flag instead, e.g. --classes 1000. With DATASETS=bundled: a few classes on the smallest size, one round.
# --dry-run prints the commands. Finished runs below OUTPUT/open_world give the number of parameters where there are any.
# Memory is that of a training step with 4 images, measured on the CPU; throughput is per process.

# shellcheck source=scripts/common.sh
source "$(dirname "$0")/../common.sh"
# shellcheck source=scripts/tables/table.sh
source "$REPO/scripts/tables/table.sh"

TRAINERS="${TRAINERS:-CoOp CoCoOp KgCoOp MaPLe PromptSRC BMIP}"
MEASURES="${MEASURES:-train eval memory}"
read_flags MEASURES BACKBONE CLASSES DEVICE PRECISION ROUNDS -- "$@"
tiny=""
if [ "$DATASETS" = bundled ]; then
    tiny=1
    BACKBONE=tiny CLASSES="${CLASSES:-3}" ROUNDS="${ROUNDS:-1}"
fi
common=(--backbone "${BACKBONE:-ViT-B/16}" --classes "${CLASSES:-100}")
measured=(--path fast --device "${DEVICE:-cpu}" --precision "${PRECISION:-fp32}" --rounds "${ROUNDS:-5}")

if_wanted() { # command: run, or print with --dry-run
    if [ -n "$DRY_RUN" ]; then show "$@"; else "$@"; fi
}

for trainer in $TRAINERS; do
    mapfile -t setting < <("$PYTHON" -W ignore -m sweeping.options "$trainer" ${tiny:+--tiny})
    [ "${#setting[@]}" -gt 0 ] || exit 2
    for what in $MEASURES; do
        case "${trainer%%=*}/$what" in
            ZeroshotCLIP*/train | ZeroshotCLIP*/memory) continue ;; # nothing is trained
        esac
        if_wanted "$PYTHON" -W ignore -m benchmarks "$what" --trainer "${trainer%%=*}" "${common[@]}" "${measured[@]}" \
            --opts "${setting[@]}"
    done
done
read -ra names <<<"$TRAINERS"
if_wanted "$PYTHON" -W ignore -m sweeping.cost --trainers "${names[@]}" "${common[@]}" ${tiny:+--tiny} \
    --runs "$OUTPUT/open_world"
