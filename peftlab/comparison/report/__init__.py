"""The report of a comparison: one page that carries everything in itself, pictures and tables beside it."""
