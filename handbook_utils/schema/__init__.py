"""The strict shape of recipes: read, checked, described; loads nothing heavy."""
