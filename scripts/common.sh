# Shared by the scripts in this folder: where the repository is and which Python to use.
# An active environment (virtualenv or conda) is used as it is; otherwise .venv in the repository.

set -euo pipefail
REPO="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
cd "$REPO"

if [ -n "${VIRTUAL_ENV:-}" ]; then
    PYTHON="$VIRTUAL_ENV/bin/python"
elif [ -n "${CONDA_PREFIX:-}" ]; then
    PYTHON="$CONDA_PREFIX/bin/python"
else
    PYTHON="$REPO/.venv/bin/python"
fi

usage() { # prints the comment at the head of the calling script
    sed -n '2,/^$/s/^# \{0,1\}//p' "$0"
}
