"""Measurements of a student beside its scores: how sure it is of teachers' tokens, and the loss around its weights.

Invariant: a probe reads published steps and changes none; what it measures has no part in any training or choice.
"""
