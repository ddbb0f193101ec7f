"""Runs: one recipe from start to result, its directory, its uses, and recipes in other processes."""
