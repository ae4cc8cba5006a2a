#!/usr/bin/env bash
# Set up, check the style and run all tests. Fast, on the CPU, without a network.
#
# Usage: scripts/test.sh [--dry-run] [PYTEST ARGUMENTS]
#   --dry-run  print the commands only
# Environment: WORKERS=2, the number of pytest processes.
source "$(dirname "$0")/common.sh"
for word in "$@"; do # what is not of this script is pytest's
    case "$word" in
        -h | --help) usage; exit 0 ;;
        --dry-run) DRY_RUN=1 ;;
        *) WORDS+=("$word") ;;
    esac
done
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
step bash scripts/setup.sh --dev
step "$PYTHON" -m ruff check --quiet .
step "$PYTHON" -m ruff format --check --quiet .
step "$PYTHON" -m pytest -n "${WORKERS:-2}" ${WORDS[@]+"${WORDS[@]}"}
