"""Memory: measured while a run goes."""
