"""The cluster: trainings as jobs, and how far they are."""
