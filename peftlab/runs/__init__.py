"""Runs: one recipe from start to result, its directory, and several beside each other."""
