"""Pay for a prompt once: rows that begin alike run through the decoder as one row."""
