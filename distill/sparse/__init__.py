"""Sparse convolution: four operations, by spconv on CUDA or by native kernels on a CPU."""
