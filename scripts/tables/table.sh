# shellcheck shell=bash
# Shared by the scripts of one table each: what to compare comes from flags or the environment, sweep.py runs it, and
# `python -m reporting table` prints the table of exactly these runs.

OUTPUT="${OUTPUT:-output}"
DATA="${DATA:-}"
SEEDS="${SEEDS:-1 2 3}"
DATASETS="${DATASETS:-all}"
DRY_RUN=""
STATUS=0
RESULTS=()

read_flags() { # names of the variables that the script reads besides the common ones, then -- and its arguments
    local known=" TRAINERS DATASETS SEEDS DATA OUTPUT OPTS SWEEP " name=""
    while [ "$1" != -- ]; do
        known="$known$1 "
        shift
    done
    shift
    while [ $# -gt 0 ]; do
        case "$1" in
            -h | --help) usage; exit 0 ;;
            --dry-run) DRY_RUN=1; name="" ;;
            --*)
                name="$(tr a-z- A-Z_ <<<"${1#--}")"
                [ "${known/ $name /}" != "$known" ] || { echo "$SCRIPT: unknown option $1" >&2; usage >&2; exit 2; }
                printf -v "$name" '%s' ""
                ;;
            *)
                [ -n "$name" ] || { echo "$SCRIPT: unexpected argument $1" >&2; usage >&2; exit 2; }
                printf -v "$name" '%s' "${!name:+${!name} }$1"
                ;;
        esac
        shift
    done
}

sweep() { # protocol, trainers, further options of sweep.py: run, and remember the results
    local words command
    read -ra words <<<"--trainers $2 --datasets $DATASETS --seeds $SEEDS"
    command=("$PYTHON" sweep.py --protocol "$1" "${words[@]}" ${DATA:+--root "$DATA"} --output "$OUTPUT" "${@:3}")
    read -ra words <<<"${SWEEP:-}"
    command+=(${words[@]+"${words[@]}"})
    read -ra words <<<"${OPTS:-}"
    if [ -n "$DRY_RUN" ]; then
        "${command[@]}" --dry-run -- ${words[@]+"${words[@]}"}
        return
    fi
    local status=0
    "${command[@]}" -- ${words[@]+"${words[@]}"} || status=$?
    # 1: some runs failed, and the table shows the others; anything else: stopped, or wrong input
    [ "$status" -le 1 ] || exit "$status"
    [ "$status" -eq 0 ] || STATUS=1
    while read -r path; do
        [ -z "$path" ] || RESULTS+=("$path")
    done < <("${command[@]}" --list-results -- ${words[@]+"${words[@]}"})
}

print_table() { # protocol: the table of all runs that sweep() was called for
    if [ -n "$DRY_RUN" ]; then
        echo "python -m reporting table --protocol $1 (the results.json of these runs)"
        return
    fi
    [ "${#RESULTS[@]}" -gt 0 ] || { echo "$SCRIPT: no run finished" >&2; exit 1; }
    echo
    "$PYTHON" -m reporting table --protocol "$1" "${RESULTS[@]}"
    exit "$STATUS"
}

option_key() { # trainer, option: the configuration key that sets a method's prompt depth or length
    local node
    case "${1%%=*}" in
        BMIP | MaPLe_BMIP | PromptSRC_BMIP | CoPrompt_BMIP) node=BMIP ;;
        MaPLe) node=MAPLE ;;
        CoPrompt) node=COPROMPT ;;
        *) refuse "${1%%=*} has no single key for $2; choose from BMIP, MaPLe, CoPrompt and their combinations" ;;
    esac
    echo "TRAINER.$node.$2"
}
