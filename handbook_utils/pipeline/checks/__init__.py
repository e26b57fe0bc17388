"""Checks of a run that has not begun."""
