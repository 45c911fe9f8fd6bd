"""Execution: local, torchrun or Ray; signals."""
