"""Memory of online stages: answers sampled, scored and learned from, on tensors without data."""
