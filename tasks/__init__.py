"""Prefect tasks: thin wrappers that obtain steps through workers, and the only MLflow import (`tracking`)."""
