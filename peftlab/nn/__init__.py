"""Modules that peftlab adds to models, starting values for them, and formulas that may be compiled."""
