"""From results.json files to tables. Reads files only: no torch, and nothing of the training code.

python -m reporting table --protocol open_world RUNS...
"""
