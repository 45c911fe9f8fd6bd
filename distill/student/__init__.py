"""The student: a sparse 3D U-Net, its voxelized input, its heads, its checkpoint files."""
