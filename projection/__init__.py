"""LiDAR-camera geometry: ego-motion compensation, projection, occlusion, label fusion.

Sweeps into one frame, points into cameras, votes into cells (NumPy and Numba, no torch).
"""
