"""Memory: predicted before a run, measured during it, by one ledger."""
