"""Choosing among scored answers, each way with its random control; pairs by an annotator."""
