"""Analysis: pure functions of models, parameters and sequences."""
