"""The engine: one row's step, vmapped over rows and looped over steps."""
