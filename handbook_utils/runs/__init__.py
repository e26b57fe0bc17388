"""Run folders: files written whole or not at all, a run's state, its log, and who may write to it."""
