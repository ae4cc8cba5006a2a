#!/usr/bin/env bash
# Table: one projection for all layers or one per layer, from text to vision and back, in BMIP.
# Usage: scripts/tables/ablation_sharing.sh [--dry-run] [--share-text VALUE ...] [--share-visual VALUE ...] [OPTIONS OF sweep.py]
source "$(dirname "$0")/../common.sh"
table ablation_sharing SHARE_TEXT SHARE_VISUAL -- "$@"
