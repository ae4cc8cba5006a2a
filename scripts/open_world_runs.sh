# shellcheck shell=bash
# The runs behind demo.sh and compare.sh: train on base classes, evaluate on base, new and all, print one table.
# The caller sets DATASET, DATA, SEEDS, SHOTS, OUTPUT, and the flags DRY_RUN and OVERWRITE (empty or 1).

read -ra EXTRA_OPTS <<<"${OPTS:-}" # KEY VALUE pairs for train.py; values without spaces

check_inputs() { # wrong input is refused before anything runs
    local seed
    [ -f "configs/datasets/$DATASET.yaml" ] ||
        refuse "unknown data set '$DATASET'; choose from $(names_in configs/datasets)"
    [ -n "$DATA" ] || refuse "set DATA to the folder that holds one folder per data set"
    [ -d "$DATA" ] || refuse "DATA is '$DATA', which is no folder"
    [ -n "${SEEDS// /}" ] || refuse "no seed given"
    for seed in $SEEDS; do
        case "$seed" in
            *[!0-9]*) refuse "seed '$seed' is not a whole number" ;;
        esac
    done
    case "$SHOTS" in
        "" | 0 | *[!0-9]*) refuse "SHOTS is '$SHOTS', not a number of images per class" ;;
    esac
}

run_folder() { # trainer setting seed
    local name="$DATASET"
    case "$DATASET" in
        folder | csv) # data of one's own goes by its label, as in sweep.py
            name="$("$PYTHON" -c 'import sys; from sweeping.settings import folder_of
print(folder_of(sys.argv[1], sys.argv[2], sys.argv[3:]))' "$DATASET" "$DATA" ${EXTRA_OPTS[@]+"${EXTRA_OPTS[@]}"})" ;;
    esac
    echo "$OUTPUT/$1/$2/$name/shots$SHOTS/seed$3"
}

run() { # trainer setting seed: a finished run is skipped, an unfinished one goes on
    local folder command
    folder="$(run_folder "$@")"
    command=("$PYTHON" train.py --root "$DATA" --seed "$3" --trainer "$1"
        --config-file "configs/trainers/$1/$2.yaml" --dataset-config-file "configs/datasets/$DATASET.yaml"
        --output-dir "$folder" ${OVERWRITE:+--overwrite}
        DATASET.NUM_SHOTS "$SHOTS" DATASET.SUBSAMPLE_CLASSES base TEST.CLASS_SPLITS "('base', 'new', 'all')"
        ${EXTRA_OPTS[@]+"${EXTRA_OPTS[@]}"})
    if [ -n "$DRY_RUN" ]; then
        show "${command[@]}"
        return
    fi
    echo "== $1, seed $3 -> $folder"
    mkdir -p "$folder"
    "${command[@]}" >>"$folder/console.txt" 2>&1 || {
        tail -n 20 "$folder/console.txt" >&2
        echo "$SCRIPT: $1, seed $3 failed; its whole output is in $folder/console.txt" >&2
        exit 1
    }
}

run_all() { # TRAINER or TRAINER=SETTING ...: every trainer with every seed, then the table of exactly these runs
    local seed method pair folders=() methods=()
    check_inputs
    for method in "$@"; do
        pair="$(chosen_setting "$method" "$DATASET")" || exit 2
        methods+=("$pair")
    done
    if [ -n "$DRY_RUN" ]; then show bash scripts/setup.sh; else bash scripts/setup.sh; fi
    if [ -z "$DRY_RUN" ] && [ -n "${OPTS:-}" ]; then
        "$PYTHON" -m sweeping.pairs "${EXTRA_OPTS[@]}" || exit 2
    fi
    for seed in $SEEDS; do
        for pair in "${methods[@]}"; do
            run "${pair% *}" "${pair#* }" "$seed"
            folders+=("$(run_folder "${pair% *}" "${pair#* }" "$seed")")
        done
    done
    print_table "${folders[@]}"
}

print_table() { # run folders
    local command=("$PYTHON" -m reporting table --protocol open_world "$@")
    if [ -n "$DRY_RUN" ]; then
        show "${command[@]}"
        return
    fi
    echo
    if is_bundled "$DATASET"; then
        echo "Demonstration on a tiny model (bundled:tiny_clip): not comparable with ViT-B/16 numbers."
    fi
    "${command[@]}"
}
