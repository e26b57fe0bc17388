"""Figures from scores: intervals over prompts, best-of-n, win rates, divergence from a reference.

Prompts are the independent units everywhere: rows of one prompt are averaged first, and `n` counts prompts.
"""
