"""Synthetic street data set with exact ground truth, written as nuScenes, and a small CLIP."""
