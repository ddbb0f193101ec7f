"""Checkpoints (written atomically, verified, without pickle) and the lock on a run."""
