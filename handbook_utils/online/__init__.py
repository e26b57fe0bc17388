"""Online reinforcement learning: a model samples answers, they are scored, and it learns from them."""
