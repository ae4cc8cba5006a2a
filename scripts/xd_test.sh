#!/usr/bin/env bash
# Cross-dataset transfer, second step: test what xd_train.sh trained (on SOURCE=imagenet) on another data set.
# Usage: scripts/xd_test.sh [--dry-run] TRAINER DATASET SEED [CFG], e.g. DATA=data scripts/xd_test.sh BMIP caltech101 1
source "$(dirname "$0")/common.sh"
positional TRAINER DATASET SEED [CFG] -- "$@"
protocol cross_dataset --source "${SOURCE:-imagenet}" --stage evaluate
