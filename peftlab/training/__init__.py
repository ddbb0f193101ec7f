"""Training: the loop, its setup, its recorder, its preflight."""
