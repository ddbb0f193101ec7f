"""peftlab against its peers: equal model, rows, order, precision and first weights, each run in its own process."""
