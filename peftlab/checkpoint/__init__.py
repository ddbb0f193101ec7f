"""Checkpoints: whole or invisible, verified, without pickle; and the lock on a run."""
