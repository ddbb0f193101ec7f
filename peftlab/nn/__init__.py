"""Modules of our own."""
