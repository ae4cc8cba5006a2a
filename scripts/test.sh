#!/usr/bin/env bash
# Set up, check the style and run all tests. Fast, on the CPU, without a network.
#
# Usage: scripts/test.sh [PYTEST ARGUMENTS]

source "$(dirname "$0")/common.sh"

case "${1:-}" in
    -h | --help) usage; exit 0 ;;
esac
bash scripts/setup.sh --dev
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
"$PYTHON" -m ruff check --quiet .
"$PYTHON" -m ruff format --check --quiet .
"$PYTHON" -m pytest -n "${WORKERS:-2}" "$@"
