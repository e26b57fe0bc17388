"""The pocket world: offline stand-ins for users, annotators and a base model, and a reward known exactly."""
