"""The method: Merge-of-Thought distillation, free of orchestrator and tracker."""
