#!/usr/bin/env bash
# Table: cross-dataset transfer. Train on all classes of ImageNet; accuracy there and on ten other data sets.
# Usage: scripts/tables/cross_dataset.sh [--dry-run] [OPTIONS OF sweep.py]
source "$(dirname "$0")/../common.sh"
table cross_dataset -- "$@"
