"""Evaluation: one evaluator per file, and the measures that they use."""
