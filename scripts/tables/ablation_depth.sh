#!/usr/bin/env bash
# Table: how many layers are prompted, in BMIP, its combinations, MaPLe or CoPrompt.
# Usage: scripts/tables/ablation_depth.sh [--dry-run] [--depths VALUE ...] [OPTIONS OF sweep.py]
source "$(dirname "$0")/../common.sh"
table ablation_depth DEPTHS -- "$@"
