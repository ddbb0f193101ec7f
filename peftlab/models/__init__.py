"""Models: where a recipe's model is, loading it, building it without weights, quantising it."""
