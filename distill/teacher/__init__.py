"""2D teachers: from camera images to a class, or a feature, of every pixel."""
