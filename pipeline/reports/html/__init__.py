"""Report of a run as one HTML page: scores, mistakes, frames, training, time and disk."""
