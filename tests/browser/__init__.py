"""Prefect's and MLflow's pages, driven as a person does: headless Chromium on the servers of `mot up`."""
