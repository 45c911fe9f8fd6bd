"""Geometry of car sensors: sweeps into one frame, points into cameras, votes into cells (NumPy and Numba, no torch)."""
