"""Recipes: the schema, reading them with the place of every error, and overrides."""
