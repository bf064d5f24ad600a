"""The report's figures, one module a section. A function returns None when there is nothing to draw."""
