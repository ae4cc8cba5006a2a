"""From results.json files to tables, comparisons, plots and one page. Reads files only: no torch, no training code.

    python -m reporting table --protocol open_world RUNS...
    python -m reporting compare MaPLe BMIP RUNS...
    python -m reporting plot base_new RUNS... -o plot.svg
    python -m reporting html RUNS... -o report.html

results.schema reads, methods.py groups, layouts.py and blocks.py arrange, checks.py warns, formats.py and html_tables
write; published.json holds what others published. docs/reporting.md is the manual.
"""
