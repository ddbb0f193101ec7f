"""Configurations of other trainers as recipes: what was taken, ignored, has no counterpart or is not known."""
