#!/usr/bin/env bash
# Table: domain generalization, of cross_dataset.sh's trainings: ImageNet, ImageNetV2, -Sketch, -A and -R.
# Usage: scripts/tables/domain_generalization.sh [--dry-run] [OPTIONS OF sweep.py]
source "$(dirname "$0")/../common.sh"
table domain_generalization -- "$@"
