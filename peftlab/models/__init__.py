"""Models: finding a recipe's model, loading it, building it without weights, quantising it."""
