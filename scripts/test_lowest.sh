#!/usr/bin/env bash
# Run a part of the tests with the lowest versions that requirements.txt allows.
#
# Usage: scripts/test_lowest.sh [--dry-run] [--beside] [FOLDER]
#   --dry-run  print the commands only
#   --beside   only what is small: lay all but torch beside the environment of setup.sh --dev, unchanged
#   FOLDER     where the environment (5 GB with torch for CUDA), or what is laid beside, goes; default: .lowest
# Environment: BASE_PYTHON=python3.10. Downloads from the package index; needs uv (pip install uv), but not for --beside.
source "$(dirname "$0")/common.sh"
read_arguments --beside -- "$@"
[ "${#WORDS[@]}" -le 1 ] || wrong "one folder at most"
folder="${WORDS[0]:-$REPO/.lowest}"
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
part=(tests/dassl tests/reporting tests/prompting/test_backbone.py tests/prompting/test_checkpoint_reading.py
    tests/trainers/test_bmip.py tests/test_predict.py tests/test_fuzz.py)
if [[ " ${FLAGS[*]:-} " = *" --beside "* ]]; then
    mapfile -t lowest < <(sed -nE '/^torch/!s/^([A-Za-z0-9_-]+)>=([0-9.]+).*/\1==\2/p' requirements.txt)
    step "$PYTHON" -m pip install --quiet --no-deps --upgrade --target "$folder/beside" "${lowest[@]}"
    # A browser depends on none of these versions.
    step env "PYTHONPATH=$folder/beside" "$PYTHON" -m pytest -n "${WORKERS:-2}" -k "not browser" "${part[@]}"
    exit 0
fi
python="$folder/bin/python"
[ -x "$python" ] || step uv venv --quiet --python "${BASE_PYTHON:-python3.10}" "$folder"
step uv pip compile --quiet --resolution lowest-direct --python "$python" requirements.txt -o "$folder/lowest.txt"
step uv pip install --quiet --python "$python" -r "$folder/lowest.txt" pytest hypothesis scikit-learn
# And whatever computes with torch.
step "$python" -m pytest "${part[@]}" tests/prompting tests/trainers/test_stopping.py
