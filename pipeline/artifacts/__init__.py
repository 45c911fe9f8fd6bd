"""Artifacts of the stages: store, index of key frames, and readers of both."""
