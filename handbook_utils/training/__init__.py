"""Training stages: each takes a recipe and a run folder and leaves a model there."""
