"""Servers, pools, deployments and workers: what `mot up`, `mot down` and `mot deploy` do."""
