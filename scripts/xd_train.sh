#!/usr/bin/env bash
# Cross-dataset transfer and domain generalization, first step: train on all classes of the source data set.
# Usage: scripts/xd_train.sh [--dry-run] TRAINER DATASET SEED [CFG], e.g. DATA=data scripts/xd_train.sh BMIP imagenet 1
source "$(dirname "$0")/common.sh"
positional TRAINER DATASET SEED [CFG] -- "$@"
protocol cross_dataset --source "$DATASET" --stage train
