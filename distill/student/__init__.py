"""The student: a sparse 3D U-Net, its voxelized input, its heads and its files."""
