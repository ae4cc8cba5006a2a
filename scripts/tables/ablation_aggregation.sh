#!/usr/bin/env bash
# Table: how BMIP joins a tower's prompts and the other's: the gate, simple aggregation, one direction, none.
# Usage: scripts/tables/ablation_aggregation.sh [--dry-run] [--aggregators VALUE ...] [OPTIONS OF sweep.py]
source "$(dirname "$0")/../common.sh"
table ablation_aggregation AGGREGATORS -- "$@"
