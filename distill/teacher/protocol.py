"""Interface of a 2D teacher: camera images in, a class of every pixel out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32
from pydantic import Field

from clipsweep.distill.teacher.maskclip import MaskClipConfig
from clipsweep.projection.errors import BadInput
from clipsweep.projection.frames import Camera, PixelLabels


@dataclass(frozen=True)
class TeacherConfig:
    """Configuration of the 2D teacher that labels the pixels.

    ``own`` has the settings of the chosen kind: ``teacher.maskclip.model`` is ``own.model``.
    """

    kind: Annotated[
        str,
        Field(
            description="where pixel labels come from: label images made elsewhere, a CLIP model, "
            "or features of a ViT, which knows no class names",
        ),
    ] = "maskclip"
    own: object = field(default_factory=MaskClipConfig)


@runtime_checkable
class ReadsImages(Protocol):
    """Settings of a teacher that feeds images to a network."""

    @property
    def size_hw(self) -> tuple[int, int]:
        """Size that images are stretched to [px]; (0, 0) is the network's usual one."""
        ...

    @property
    def batch(self) -> int:
        """Images per forward pass."""
        ...


@runtime_checkable
class Teacher(Protocol):
    """2D teacher: labels the pixels of camera images."""

    @property
    def text(self) -> Float32[np.ndarray, "c d"]:
        """Unit embedding of each class in the space of the features."""
        ...

    def digest(self) -> str:
        """Digest (sha256) of the weights and settings that decide the pixel labels.

        Part of the name of what is made with it.
        """
        ...

    def __call__(self, cameras: Sequence[Camera]) -> list[PixelLabels]:
        """Pixel labels of camera images, in order.

        Raises:
            BadInput: an image, or its label image, cannot be used.
        """
        ...

    def stream(self, cameras: Iterable[Camera]) -> Iterator[PixelLabels | BadInput]:
        """Streams pixel labels of any number of camera images, in order.

        An image that cannot be used leaves its error in its place.
        """
        ...
