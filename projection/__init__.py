"""Geometry of car sensors.

Sweeps into one frame, points into cameras, votes into cells (NumPy and Numba, no torch).
"""
