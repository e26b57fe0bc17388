"""Putting a trained model to use: a folder that servers take, its card, and whether a server serves it."""
