"""Artifacts of the stages: store, index, and readers of both."""
