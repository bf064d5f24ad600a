"""Figures, tables and the HTML report of one run; `mot_core.report.html.write_report` is the way in."""
