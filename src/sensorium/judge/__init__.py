"""Judging: an evaluator a file, and the measures that they are made of."""
