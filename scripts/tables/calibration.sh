#!/usr/bin/env bash
# Table: calibration of open_world.sh's runs: ECE on base, new and all classes, without and with a temperature, and NLL.
# Usage: scripts/tables/calibration.sh [--dry-run] [OPTIONS OF sweep.py]
source "$(dirname "$0")/../common.sh"
table calibration -- "$@"
