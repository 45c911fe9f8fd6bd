"""Training loop and data-parallel training on several processes."""
