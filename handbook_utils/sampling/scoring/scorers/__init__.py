"""Scorers: the gold reward, reward models and ensembles of them, verifiers, judges."""
