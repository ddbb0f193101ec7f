"""Parameters: what trains, counting it, the shape of a model, the audit of a run."""
