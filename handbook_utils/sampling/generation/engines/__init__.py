"""What turns prompts into sampled tokens; `transformers` is the engine that needs nothing else installed."""
