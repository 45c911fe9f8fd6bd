"""The student: a sparse 3D U-Net, what it is fed with and how it is stored."""
