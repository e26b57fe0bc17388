"""Shapes in which other tools keep a message, a call of a tool, a conversation or ratings, read as ours."""
