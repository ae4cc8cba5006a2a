#!/usr/bin/env bash
# Set up, then train CoOp, MaPLe and BMIP on the base classes of the bundled digits over three seeds, evaluate each on
# base, new and all classes beside zero-shot CLIP, and print one table. A demonstration on a tiny model.
#
# Usage: scripts/demo.sh [--overwrite]
# Environment: SEEDS="1 2 3", SHOTS=16, OUTPUT=output/demo. Finished runs are skipped.

source "$(dirname "$0")/common.sh"

options=()
case "${1:-}" in
    "") ;;
    --overwrite) options+=(--overwrite) ;;
    -h | --help) usage; exit 0 ;;
    *) echo "demo.sh: unknown option $1" >&2; usage >&2; exit 2 ;;
esac
SEEDS="${SEEDS:-1 2 3}"
SHOTS="${SHOTS:-16}"
OUTPUT="${OUTPUT:-output/demo}"

bash scripts/setup.sh

run() { # trainer setting seed
    local folder="$OUTPUT/$1/$2/digits/shots$SHOTS/seed$3"
    echo "== $1, seed $3 -> $folder"
    mkdir -p "$folder"
    "$PYTHON" -W ignore train.py --root assets --seed "$3" --trainer "$1" \
        --config-file "configs/trainers/$1/$2.yaml" --dataset-config-file configs/datasets/digits.yaml \
        --output-dir "$folder" "${options[@]}" \
        DATASET.NUM_SHOTS "$SHOTS" DATASET.SUBSAMPLE_CLASSES base TEST.CLASS_SPLITS "('base', 'new', 'all')" \
        >"$folder/console.txt" 2>&1 || { tail -n 20 "$folder/console.txt" >&2; exit 1; }
}

for seed in $SEEDS; do
    run ZeroshotCLIP tiny "$seed"
    run CoOp tiny_c4_ep50_batch32 "$seed"
    run MaPLe tiny_c2_ep10_batch4_2ctx "$seed"
    run BMIP tiny_c2_ep10_batch4_2ctx "$seed"
done
echo
echo "Demonstration on a tiny model (bundled:tiny_clip): not comparable with ViT-B/16 numbers."
"$PYTHON" -m reporting table --protocol open_world "$OUTPUT"
