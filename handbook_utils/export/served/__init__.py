"""Does a server serve the model that was trained? Prompts, answers and log-probabilities are compared."""
