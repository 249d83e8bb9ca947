"""Analysis: pure functions of one row, mapped over rows and snapshots of a workdir; training is never imported."""
