"""Chat templates: rendered under limits, checked, and turned into tokens of which some carry loss."""
