"""From images and names to a 3D network: teachers, student, objectives, training."""
