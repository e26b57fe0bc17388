"""Sampling answers, scoring them, having pairs of them annotated, and selecting among them."""
