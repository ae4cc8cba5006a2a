#!/usr/bin/env bash
# Train on the base classes of a data set; test on the base, the new and all classes.
# Usage: scripts/open_world.sh [--dry-run] TRAINER DATASET SEED [CFG], e.g. DATA=data scripts/open_world.sh BMIP eurosat 1
source "$(dirname "$0")/common.sh"
positional TRAINER DATASET SEED [CFG] -- "$@"
protocol open_world
