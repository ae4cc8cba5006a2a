#!/usr/bin/env bash
# Table: trained parameters, GFLOPs, memory and throughput, on a random CLIP of a size: without data and weights.
# Usage: scripts/tables/cost.sh [--dry-run] [--trainers NAME ...] [--backbone NAME] [--classes N] [--measures WHAT ...] ...
source "$(dirname "$0")/../common.sh"
unset SEEDS DATA OUTPUT OPTS SWEEP
export PYTHONWARNINGS=ignore
table cost BACKBONE CLASSES DEVICE PRECISION ROUNDS MEASURES -- "$@"
