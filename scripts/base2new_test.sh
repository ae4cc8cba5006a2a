#!/usr/bin/env bash
# Test what base2new_train.sh trained: base classes among the base classes, new ones among the new ones.
# Usage: scripts/base2new_test.sh [--dry-run] TRAINER DATASET SEED [CFG], e.g. DATA=data scripts/base2new_test.sh BMIP eurosat 1
source "$(dirname "$0")/common.sh"
positional TRAINER DATASET SEED [CFG] -- "$@"
protocol base2new_test
