#!/usr/bin/env bash
# Set up, then train CoOp, MaPLe and BMIP on the base classes of the bundled digits over three seeds, evaluate each on
# base, new and all classes beside zero-shot CLIP, and print one table. A demonstration on a tiny model.
#
# Usage: scripts/demo.sh [--all] [--overwrite] [--dry-run]
#   --all        every method, not only these four
#   --overwrite  redo finished runs, which are skipped otherwise
#   --dry-run    print the commands only
# Environment: SEEDS="1 2 3", SHOTS=16, OUTPUT=output/demo,
#   CFG_<Trainer>=SETTING for another setting than the default, e.g. CFG_CoOp=tiny_c4_ep50_batch32_ctxv1,
#   OPTS="KEY VALUE ..." for train.py, e.g. OPTS="OPTIM.MAX_EPOCH 1".

# shellcheck source=scripts/common.sh
source "$(dirname "$0")/common.sh"
# shellcheck source=scripts/settings.sh
source "$REPO/scripts/settings.sh"
# shellcheck source=scripts/open_world_runs.sh
source "$REPO/scripts/open_world_runs.sh"

DRY_RUN="" OVERWRITE=""
TRAINERS="ZeroshotCLIP CoOp MaPLe BMIP"
while [ $# -gt 0 ]; do
    case "$1" in
        --all) TRAINERS="$(every_trainer)" ;;
        --overwrite) OVERWRITE=1 ;;
        --dry-run) DRY_RUN=1 ;;
        -h | --help) usage; exit 0 ;;
        *) echo "$SCRIPT: unknown option $1" >&2; usage >&2; exit 2 ;;
    esac
    shift
done
DATASET=digits
DATA=assets
SEEDS="${SEEDS:-1 2 3}"
SHOTS="${SHOTS:-16}"
OUTPUT="${OUTPUT:-output/demo}"

# shellcheck disable=SC2086 # one word per trainer
run_all $TRAINERS
