"""The engine: one row's step, vmapped over rows, looped over steps, kept on disk."""
