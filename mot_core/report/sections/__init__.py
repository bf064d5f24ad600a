"""The report's chapters: each function takes the measures and returns a `Section`, whatever was measured."""
