# shellcheck shell=bash
# shellcheck disable=SC2034 # what is set here is used by the scripts that read this file
# Shared by the scripts: where the repository is, which Python to use, arguments, and the way to sweep.py, which knows
# protocols, configs and tables. An active environment (virtualenv or conda) is used as it is; otherwise .venv.

set -euo pipefail
SCRIPT="$(basename "$0")"
REPO="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
SCRIPT_FILE="$(cd "$(dirname "$0")" && pwd)/$SCRIPT"
cd "$REPO"
PYTHON="${VIRTUAL_ENV:-${CONDA_PREFIX:-$REPO/.venv}}/bin/python"
WORDS=() FLAGS=() DRY_RUN="" MORE_HELP=""

usage() { # prints the comment at the head of the calling script
    sed -n '2,/^source/s/^# \{0,1\}//p' "$SCRIPT_FILE"
    printf '%s' "$MORE_HELP"
}

wrong() { # message: wrong use of the calling script
    echo "$SCRIPT: $1 (--help says how it is used)" >&2
    exit 2
}

read_arguments() { # options that the script knows, --, its arguments: options go to FLAGS, the others to WORDS
    local known=" --dry-run " word
    while [ "$1" != -- ]; do known="$known$1 "; shift; done
    shift
    for word in "$@"; do
        case "$word" in
            -h | --help) usage; exit 0 ;;
            -*) [ "${known/ $word /}" != "$known" ] || wrong "unknown option $word"; FLAGS+=("$word") ;;
            *) WORDS+=("$word") ;;
        esac
        [ "$word" != --dry-run ] || DRY_RUN=1
    done
}

step() { # command: run it; with --dry-run, print it as a line that can be pasted into a shell
    if [ -z "$DRY_RUN" ]; then "$@"; else printf '%q ' "$@"; echo; fi
}

positional() { # names of the script's arguments, [NAME] may be left out, then -- and the arguments
    local names=() required=0 place
    while [ "$1" != -- ]; do
        names+=("$(tr -d '[]' <<<"$1")")
        [ "${1#[}" != "$1" ] || required=$((required + 1))
        shift
    done
    MORE_HELP="TRAINER is a folder of configs/trainers and CFG a file in it, by default the published one; DATASET is a file
of configs/datasets. Environment: DATA, the folder that holds one folder per data set (not needed for bundled data),
OUTPUT=output, SHOTS=16, OPTS=\"KEY VALUE ...\" for train.py, e.g. OPTS=\"OPTIM.MAX_EPOCH 1\". --dry-run prints commands.
"
    read_arguments "$@"
    [ "${#WORDS[@]}" -ge "$required" ] && [ "${#WORDS[@]}" -le "${#names[@]}" ] || wrong "takes ${names[*]}"
    for place in "${!WORDS[@]}"; do printf -v "${names[$place]}" '%s' "${WORDS[$place]}"; done
}

protocol() { # protocol, further options of sweep.py: the runs of TRAINER with config CFG, on the terminal
    local seeds options
    read -ra seeds <<<"${SEED:-${SEEDS:-1 2 3}}"
    read -ra options <<<"${OPTS:-}" # KEY VALUE pairs for train.py; values without spaces
    exec "$PYTHON" sweep.py --protocol "$1" --trainers "$TRAINER${CFG:+=$CFG}" --datasets "$DATASET" --seeds "${seeds[@]}" \
        --shots "${SHOTS:-16}" "${@:2}" ${DATA:+--root "$DATA"} --output "${OUTPUT:-output}" --foreground --retry \
        ${FLAGS[@]+"${FLAGS[@]}"} -- ${options[@]+"${options[@]}"}
}

table() { # table of sweep.py, variables that it reads beside the common ones, --, the script's arguments
    local command=("$PYTHON" sweep.py --table "$1") values
    shift
    set -- TRAINERS DATASETS SEEDS DATA OUTPUT OPTS "$@"
    while [ "$1" != -- ]; do
        case "$1" in
            DATA | OUTPUT) values=("${!1:-}") ;; # may have spaces
            *) read -ra values <<<"${!1:-}" ;;
        esac
        [ -z "${values[*]:-}" ] || command+=("--$(tr A-Z_ a-z- <<<"$1")" "${values[@]}")
        shift
    done
    read -ra values <<<"${SWEEP:-}"
    if [[ " $* " = *" -h "* || " $* " = *" --help "* ]]; then
        usage # and what sweep.py says
        echo 'Environment: TRAINERS, DATASETS, SEEDS, DATA, OUTPUT, OPTS and the options above, as flags are given,'
        echo 'e.g. DATASETS=bundled SEEDS="1 2"; SWEEP: further options of sweep.py, e.g. SWEEP="--gpus 0 1 2 3".'
    fi
    exec "${command[@]}" ${values[@]+"${values[@]}"} "${@:2}"
}
