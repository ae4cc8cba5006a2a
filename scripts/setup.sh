#!/usr/bin/env bash
# Install what the repository needs: into the active environment, else into .venv (made if missing).
#
# Usage: scripts/setup.sh [--dev] [--dry-run]
#   --dev      also what the tests need
#   --dry-run  print the commands only
# Runs again in a second when nothing has changed.

# shellcheck source=scripts/common.sh
source "$(dirname "$0")/common.sh"

requirements="requirements.txt"
DRY_RUN=""
while [ $# -gt 0 ]; do
    case "$1" in
        --dev) requirements="requirements-dev.txt" ;;
        --dry-run) DRY_RUN=1 ;;
        -h | --help) usage; exit 0 ;;
        *) echo "$SCRIPT: unknown option $1" >&2; usage >&2; exit 2 ;;
    esac
    shift
done
make_environment=("${BASE_PYTHON:-python3}" -m venv "$REPO/.venv")
install=("$PYTHON" -m pip install --disable-pip-version-check --quiet -r "$requirements")

if [ -n "$DRY_RUN" ]; then
    [ -x "$PYTHON" ] || show "${make_environment[@]}"
    show "${install[@]}"
    exit 0
fi
if [ ! -x "$PYTHON" ]; then
    echo "Making the environment $REPO/.venv"
    "${make_environment[@]}"
fi
"$PYTHON" - <<'CHECK' || exit 1
import sys
if sys.version_info < (3, 10):
    sys.exit(f"Python 3.10 or newer is needed, {sys.executable} is {sys.version.split()[0]}: set BASE_PYTHON")
CHECK

stamp="$("$PYTHON" -c 'import sys; print(sys.prefix)')/.prompt-learning-$requirements"
wanted="$(cat requirements.txt "$requirements")"
if [ ! -f "$stamp" ] || [ "$(cat "$stamp")" != "$wanted" ]; then
    echo "Installing $requirements with $PYTHON"
    "${install[@]}"
    "$PYTHON" -W ignore -c 'import torch, torchvision, clip, yacs' # works before it counts as done
    printf '%s\n' "$wanted" >"$stamp"
fi
"$PYTHON" -c 'from importlib.metadata import version as v; print("Ready: torch", v("torch") + ", torchvision", v("torchvision"))'
