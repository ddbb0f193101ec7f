"""A run's result in the formats of other libraries and servers: one module for each."""
