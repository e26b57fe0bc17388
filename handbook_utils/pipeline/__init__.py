"""Stages and pipelines: from a recipe to a run folder."""
