"""Models and tokenizers, and the two numbers taken from them: log-probabilities and rewards."""
