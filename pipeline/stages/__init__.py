"""Pipeline stages: configuration and artifacts in, an artifact out, resumable."""
