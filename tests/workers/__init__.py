"""Tests; `tests/` mirrors the packages."""
