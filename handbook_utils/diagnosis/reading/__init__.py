"""Logs of any tool as one table: JSON, CSV, printed text, notebooks, TensorBoard's event files."""
