"""The model and the data sets that ship with the package; each folder has its own README and licence note."""
