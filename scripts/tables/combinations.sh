#!/usr/bin/env bash
# Table: MaPLe, PromptSRC and CoPrompt without and with BMIP's prompts, HiCroPL and BMIP, in the open-world protocol.
# Usage: scripts/tables/combinations.sh [--dry-run] [OPTIONS OF sweep.py]
source "$(dirname "$0")/../common.sh"
table combinations -- "$@"
