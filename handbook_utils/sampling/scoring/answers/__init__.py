"""Is an answer the one on record: found in its text, read as number, set, words or formula, and compared."""
