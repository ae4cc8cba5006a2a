#!/usr/bin/env bash
# Table: accuracy over all classes against the number of training images per class.
# Usage: scripts/tables/few_shot_curve.sh [--dry-run] [--shots VALUE ...] [OPTIONS OF sweep.py]
source "$(dirname "$0")/../common.sh"
table few_shot_curve SHOTS -- "$@"
