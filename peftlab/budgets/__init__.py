"""Budgets: what a run may train, take, store or last, and the size of a method that meets it."""
