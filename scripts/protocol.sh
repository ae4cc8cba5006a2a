# shellcheck shell=bash
# Shared by the scripts of one protocol each: positional arguments in the order of CoOp's scripts, run by sweep.py, which
# knows the protocols. A finished run is skipped, an unfinished one goes on; the output comes to the terminal.

DATA="${DATA:-}"
OUTPUT="${OUTPUT:-output}"
SHOTS="${SHOTS:-16}"
DRY_RUN=""
read -ra EXTRA_OPTS <<<"${OPTS:-}" # KEY VALUE pairs for train.py; values without spaces

read_positional() { # names of the arguments, [NAME] may be left out, then -- and the script's own arguments
    local names=() required=0 name word words=()
    while [ "$1" != -- ]; do
        name="${1#[}"
        names+=("${name%]}")
        [ "$name" = "$1" ] && required=$((required + 1))
        shift
    done
    shift
    for word in "$@"; do
        case "$word" in
            -h | --help) usage; exit 0 ;;
            --dry-run) DRY_RUN=1 ;;
            -*) echo "$SCRIPT: unknown option $word" >&2; usage >&2; exit 2 ;;
            *) words+=("$word") ;;
        esac
    done
    if [ "${#words[@]}" -lt "$required" ] || [ "${#words[@]}" -gt "${#names[@]}" ]; then
        echo "$SCRIPT: takes ${names[*]}" >&2
        usage >&2
        exit 2
    fi
    for word in "${!words[@]}"; do
        printf -v "${names[$word]}" '%s' "${words[$word]}"
    done
}

run_protocol() { # protocol, further options of sweep.py: the runs of $TRAINER with setting $CFG (empty: the default)
    "$PYTHON" sweep.py --protocol "$1" --trainers "$TRAINER${CFG:+=$CFG}" "${@:2}" ${DATA:+--root "$DATA"} \
        --output "$OUTPUT" --foreground --retry ${DRY_RUN:+--dry-run} -- ${EXTRA_OPTS[@]+"${EXTRA_OPTS[@]}"}
}
