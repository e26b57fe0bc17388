"""The command `handbook`: `app.py` has the commands, the other modules what they do and print."""

from handbook_utils.cli.app import app, main

__all__ = ["app", "main"]
