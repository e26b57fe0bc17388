"""Sentences that results have to carry: recorded, broken on purpose (sabotage), tried on other seeds."""
