"""Verifiable instructions, as IFEval has them: which of them answers follow, and how often."""
