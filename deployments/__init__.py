"""Presets (and, later, deployments), shipped as package data."""
