#!/usr/bin/env bash
# Table: open-world and base-to-new generalization: accuracy on base and new classes, their H, and over all classes.
# Usage: scripts/tables/open_world.sh [--dry-run] [OPTIONS OF sweep.py]
source "$(dirname "$0")/../common.sh"
table open_world -- "$@"
