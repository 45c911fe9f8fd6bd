"""2D teachers: semantic class, or image feature, of every pixel of camera images."""
