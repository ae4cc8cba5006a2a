#!/usr/bin/env bash
# Train the given methods on the base classes of one data set, evaluate each on base, new and all classes, and print
# them side by side: the same images, protocol and seeds for all of them.
#
# Usage: scripts/compare.sh [--overwrite] [--dry-run] DATASET SEED TRAINER[=SETTING]...
#   DATASET      a file of configs/datasets; with bundled data, e.g. digits, every method's tiny setting
#   SEED         one seed, or several in quotes: "1 2 3"
#   TRAINER      a folder of configs/trainers; SETTING is a file in it, by default the one for base-to-new generalization
#                on ViT-B/16. The same trainer may come with several settings.
#   --overwrite  redo finished runs, which are skipped otherwise
#   --dry-run    print the commands only
# Environment: DATA, the folder that holds one folder per data set (needed unless DATASET is bundled), SHOTS=16,
#   OUTPUT=output/compare, CFG_<Trainer>=SETTING as with TRAINER=SETTING,
#   OPTS="KEY VALUE ..." for train.py, e.g. OPTS="OPTIM.MAX_EPOCH 1".
# Example: DATA=data scripts/compare.sh eurosat "1 2 3" CoOp MaPLe BMIP BMIP=vit_b16_c2_ep10_batch4_2ctx_official

# shellcheck source=scripts/common.sh
source "$(dirname "$0")/common.sh"
# shellcheck source=scripts/settings.sh
source "$REPO/scripts/settings.sh"
# shellcheck source=scripts/open_world_runs.sh
source "$REPO/scripts/open_world_runs.sh"

DRY_RUN="" OVERWRITE=""
while [ $# -gt 0 ]; do
    case "$1" in
        --overwrite) OVERWRITE=1 ;;
        --dry-run) DRY_RUN=1 ;;
        -h | --help) usage; exit 0 ;;
        -*) echo "$SCRIPT: unknown option $1" >&2; usage >&2; exit 2 ;;
        *) break ;;
    esac
    shift
done
if [ $# -lt 3 ]; then
    echo "$SCRIPT: needs DATASET, SEED and at least one TRAINER" >&2
    usage >&2
    exit 2
fi
DATASET="$1"
SEEDS="$2"
shift 2
DATA="${DATA:-}"
if is_bundled "$DATASET"; then DATA="${DATA:-assets}"; fi
SHOTS="${SHOTS:-16}"
OUTPUT="${OUTPUT:-output/compare}"

run_all "$@"
