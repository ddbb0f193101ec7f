"""Data: sources, formats, tokens, batches and their order."""
