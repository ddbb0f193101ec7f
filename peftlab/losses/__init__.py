"""Losses: what training minimises and evaluation reports, one class for each way of computing it."""
