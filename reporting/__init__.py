"""From results.json files to tables, comparisons, plots and one page. Reads files only: no torch, no training code.

methods.py groups runs, table.py arranges them and published.py's numbers, compare.py pairs two methods, ranks.py ranks
many over data sets, formats.py writes these; plots.py and run_plots.py draw, drawing.py says how all plots look,
report.py puts everything on a page. published.json holds what others published. docs/reporting.md is the manual.
"""
