#!/usr/bin/env bash
# Install what the repository needs: into the active environment, else into .venv (made if missing).
#
# Usage: scripts/setup.sh [--dev] [--dry-run]
#   --dev      also what the tests need
#   --dry-run  print the commands only
# Runs again in a second when nothing has changed.
source "$(dirname "$0")/common.sh"
read_arguments --dev -- "$@"
[ "${#WORDS[@]}" = 0 ] || wrong "unexpected argument ${WORDS[0]}"
requirements="requirements.txt"
[[ " ${FLAGS[*]:-} " != *" --dev "* ]] || requirements="requirements-dev.txt"
if [ ! -x "$PYTHON" ]; then
    [ -n "$DRY_RUN" ] || echo "Making the environment $REPO/.venv"
    step "${BASE_PYTHON:-python3}" -m venv "$REPO/.venv"
fi
install=("$PYTHON" -m pip install --disable-pip-version-check --quiet -r "$requirements")
if [ -n "$DRY_RUN" ]; then
    step "${install[@]}"
    exit 0
fi
"$PYTHON" -c 'import sys
if sys.version_info < (3, 10):
    sys.exit(f"Python 3.10 or newer is needed, {sys.executable} is {sys.version.split()[0]}: set BASE_PYTHON")'
stamp="$("$PYTHON" -c 'import sys; print(sys.prefix)')/.prompt-learning-$requirements"
wanted="$(cat requirements.txt "$requirements")"
if [ ! -f "$stamp" ] || [ "$(cat "$stamp")" != "$wanted" ]; then
    echo "Installing $requirements with $PYTHON"
    "${install[@]}"
    "$PYTHON" -W ignore -c 'import torch, torchvision, clip, yacs' # works before it counts as done
    printf '%s\n' "$wanted" >"$stamp"
fi
"$PYTHON" -c 'from importlib.metadata import version as v; print("Ready: torch", v("torch") + ", torchvision", v("torchvision"))'
