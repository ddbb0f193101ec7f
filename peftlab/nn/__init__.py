"""Modules that peftlab adds to models, and starting values for them."""
