#!/usr/bin/env bash
# Domain generalization: test what xd_train.sh trained (on SOURCE=imagenet) on the same classes in another domain.
# Usage: scripts/domain_gen.sh [--dry-run] TRAINER DATASET SEED [CFG], e.g. DATA=data scripts/domain_gen.sh BMIP imagenet_r 1
source "$(dirname "$0")/common.sh"
positional TRAINER DATASET SEED [CFG] -- "$@"
protocol domain_generalization --source "${SOURCE:-imagenet}" --stage evaluate
