"""Figures from a study's dataset, and the self-contained page that shows them beside the claims."""
