"""Measuring students: benchmarks, metrics, and statistics that pair by problem."""
