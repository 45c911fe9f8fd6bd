"""Training loop, on one process or several."""
