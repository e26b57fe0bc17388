"""What a run will need: memory by part, what makes it fit, and time; computed on tensors without data."""
