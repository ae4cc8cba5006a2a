#!/usr/bin/env bash
# Train on the base classes of a data set and test on them. Runs lie where CoOp's script of this name puts them.
# Usage: scripts/base2new_train.sh [--dry-run] TRAINER DATASET SEED [CFG], e.g. DATA=data scripts/base2new_train.sh BMIP eurosat 1
source "$(dirname "$0")/common.sh"
positional TRAINER DATASET SEED [CFG] -- "$@"
protocol base2new_train
