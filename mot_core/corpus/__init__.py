"""From graded rationales to what branches train on: one matched corpus a teacher, or the shuffled control."""
