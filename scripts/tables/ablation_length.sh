#!/usr/bin/env bash
# Table: how many prompt tokens there are per layer, in BMIP, its combinations, MaPLe or CoPrompt.
# Usage: scripts/tables/ablation_length.sh [--dry-run] [--lengths VALUE ...] [OPTIONS OF sweep.py]
source "$(dirname "$0")/../common.sh"
table ablation_length LENGTHS -- "$@"
