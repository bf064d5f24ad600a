"""From graded rationales to what branches train on: one corpus a teacher, or the shuffled control."""
