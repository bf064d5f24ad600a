"""The DAGs. Read `experiment.py` first; `cli.py` is the `mot` command."""
