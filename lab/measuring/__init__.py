"""Measuring: runs pure functions of one row over the rows and snapshots of a training, and caches the results."""
