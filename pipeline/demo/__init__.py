"""A small street world with exact truth, written as nuScenes, and a small CLIP of its own."""
