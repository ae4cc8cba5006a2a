#!/usr/bin/env bash
# Run a part of the tests with the lowest versions that requirements.txt allows.
#
# Usage: scripts/test_lowest.sh [--dry-run] [FOLDER]
#   --dry-run  print the commands only
#   FOLDER     where the environment goes; default: .lowest, made if missing. It takes 5 GB with torch for CUDA.
# Environment: BASE_PYTHON=python3.10. Downloads from the package index; needs uv (pip install uv).

# shellcheck source=scripts/common.sh
source "$(dirname "$0")/common.sh"

step() { # command: run it, or print it
    "$@"
}
while [ $# -gt 0 ]; do
    case "$1" in
        -h | --help) usage; exit 0 ;;
        --dry-run) step() { show "$@"; } ;;
        -*) echo "$SCRIPT: unknown option $1" >&2; usage >&2; exit 2 ;;
        *) break ;;
    esac
    shift
done
[ $# -le 1 ] || refuse "one folder at most"
folder="${1:-$REPO/.lowest}"
base="${BASE_PYTHON:-python3.10}"
python="$folder/bin/python"
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
[ -x "$python" ] || step uv venv --quiet --python "$base" "$folder"
step uv pip compile --quiet --resolution lowest-direct --python "$python" requirements.txt -o "$folder/lowest.txt"
step uv pip install --quiet --python "$python" -r "$folder/lowest.txt" pytest hypothesis scikit-learn
step "$python" -m pytest tests/dassl tests/reporting tests/prompting/test_backbone.py \
    tests/prompting/test_checkpoint_reading.py tests/trainers/test_bmip.py tests/test_predict.py tests/test_fuzz.py
