"""The scripts that made what ships in `assets/`: rerun them to check or to change it."""
