"""Commands that stand alone: a module for each, called by `app.py`."""
