"""Memory: predicted before a run, measured while it goes, by one tracker."""
