"""Benchmarks of the lm-evaluation-harness (extra `lm-eval`): asked as in training, paired by question."""
