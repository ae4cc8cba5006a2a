#!/usr/bin/env bash
# Is the set-up right? Check the published data sets that are under DATA, test zero-shot CLIP ViT-B/16 on each, and set its
# accuracies beside the published ones. Run it first with real data: nothing is trained, a CPU will do, and a wrong weights
# file, split, template or resized copy shows here. Exit status 1 where something differs.
# Usage: scripts/verify_setup.sh [--dry-run] --data DATA
# Environment: DATA instead of --data, OUTPUT=output/verify_setup, OPTS="KEY VALUE ..." for train.py; --dry-run prints
#   the commands only.
source "$(dirname "$0")/common.sh"
read_arguments --data -- "$@"
DATA="${WORDS[0]:-${DATA:-}}" OUTPUT="${OUTPUT:-output/verify_setup}" status=0
[ "${#WORDS[@]}" -le 1 ] && [ -n "$DATA" ] || wrong "needs --data DATA, the folder that holds one folder per data set"
read -ra options <<<"${OPTS:-}"
step "$PYTHON" -m datasets check all --root "$DATA" || { [ "$?" = 1 ] || exit 2; status=1; }
step "$PYTHON" sweep.py --protocol open_world --trainers ZeroshotCLIP --datasets present --root "$DATA" --output "$OUTPUT" \
    --retry ${options[@]+-- "${options[@]}"} || { [ "$?" = 1 ] || exit 2; status=1; }
step "$PYTHON" -m reporting verify "$OUTPUT" || status=1
exit "$status"
