"""Evaluation: losses, metrics and generated text on held-out rows."""
