"""Execution of stages: local, torchrun or Ray; signals."""
