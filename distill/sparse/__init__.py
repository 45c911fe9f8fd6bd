"""Sparse 3D convolution: spconv on CUDA, own kernels with the same weights on a CPU.

ops.py has the layers, and chooses; spconv.py and native.py compute; norm.py is the batch norm.

With spconv alone, native.py, native_kernels.py, norm_kernels.py and threads.py can be deleted, and
what builds native kernel maps in ops.py (``neighbours`` and ``coarsen`` of projection/grid.py then
have no caller). What has to change:

- norm.py: ``_by_torch`` is all that is left of ``Norm``; student/unet.py needs ``recomputing``.
- student/heads.py multiplies with the native kernels on a CPU: take ``nn.functional.linear``.
- objectives/segmentation.py sorts on a CPU through ``threads.share``: take ``argsort``.
- ``model.backend``: ``auto`` and ``native`` name the native kernels (student/unet.py).

Without the native kernels nothing trains on a CPU: spconv's backward pass needs CUDA.
"""
