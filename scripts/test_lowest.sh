#!/usr/bin/env bash
# Run a part of the tests with the lowest versions that requirements.txt allows.
#
# Usage: scripts/test_lowest.sh [FOLDER]
#   FOLDER  where the environment goes; default: .lowest, made if missing. It takes 5 GB with torch for CUDA.
# Environment: BASE_PYTHON=python3.10. Downloads from the package index; needs uv (pip install uv).

# shellcheck source=scripts/common.sh
source "$(dirname "$0")/common.sh"

case "${1:-}" in
    -h | --help) usage; exit 0 ;;
esac
folder="${1:-$REPO/.lowest}"
base="${BASE_PYTHON:-python3.10}"
version="$("$base" -c 'import sys; print("%d.%d" % sys.version_info[:2])')"
cd "$REPO"
[ -x "$folder/bin/python" ] || uv venv --quiet --python "$base" "$folder"
uv pip compile --quiet --resolution lowest-direct --python-version "$version" requirements.txt -o "$folder/lowest.txt"
uv pip install --quiet --python "$folder/bin/python" -r "$folder/lowest.txt" pytest hypothesis
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
"$folder/bin/python" -m pytest tests/dassl tests/reporting/test_table.py tests/prompting/test_backbone.py \
    tests/prompting/test_checkpoint_reading.py tests/trainers/test_bmip.py tests/test_predict.py tests/test_fuzz.py
