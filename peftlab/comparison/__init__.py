"""The comparison lab: variants under equal budgets, several seeds, honest statistics, one report."""
