"""Optimisation: one optimiser step, its checks, the schedule."""
