"""Figures that the design promises, each a ratio to a peer measured in the same process."""
