"""The stages: configuration and artifacts in, an artifact out, nothing done twice."""
