"""Recipes of other tools, turned into ours: `flat.convert_recipe` is the way in."""
