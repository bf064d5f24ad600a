"""What `deployments/prefect.yaml` registers: flows that a person starts from a form, or a schedule at night.

Thin shells around the Python calls that the command line uses. Invariant: whatever arrives here came through a web page, so
it is checked against the roots that a form may name before anything is read.
"""
