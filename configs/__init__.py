"""Recipes and label spaces, as YAML files."""
