#!/usr/bin/env bash
# Table: how own and foreign prompts meet in BMIP: the gate, simple aggregation, one direction, none.
# Usage: scripts/tables/ablation_aggregation.sh [--dry-run] [--aggregators VALUE ...] [OPTIONS OF sweep.py]
source "$(dirname "$0")/../common.sh"
table ablation_aggregation AGGREGATORS -- "$@"
