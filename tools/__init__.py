"""The scripts that made what ships in `assets/`: rerun them to check or to change it."""

import prompting  # noqa: F401  before clip, whose warning about pkg_resources it silences
