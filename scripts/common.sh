# shellcheck shell=bash
# shellcheck disable=SC2034 # what is set here is used by the scripts that read this file
# Shared by the scripts in this folder: where the repository is and which Python to use.
# An active environment (virtualenv or conda) is used as it is; otherwise .venv in the repository.

set -euo pipefail
SCRIPT="$(basename "$0")"
REPO="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
SCRIPT_FILE="$(cd "$(dirname "$0")" && pwd)/$SCRIPT"
cd "$REPO"

if [ -n "${VIRTUAL_ENV:-}" ]; then
    PYTHON="$VIRTUAL_ENV/bin/python"
elif [ -n "${CONDA_PREFIX:-}" ]; then
    PYTHON="$CONDA_PREFIX/bin/python"
else
    PYTHON="$REPO/.venv/bin/python"
fi

usage() { # prints the comment at the head of the calling script
    sed -n '2,/^$/s/^# \{0,1\}//p' "$SCRIPT_FILE"
}

refuse() { # message: wrong use of the calling script
    echo "$SCRIPT: $1" >&2
    exit 2
}

show() { # command: as a line that can be pasted into a shell
    local word line=""
    for word in "$@"; do
        case "$word" in
            "" | *[\"\$\`\\!]*) word="$(printf '%q' "$word")" ;;
            *[!A-Za-z0-9_./:=+,@%-]*) word="\"$word\"" ;;
        esac
        line="$line $word"
    done
    echo "${line# }"
}
