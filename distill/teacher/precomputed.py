"""Precomputed teacher: reads 2D label images made elsewhere, by any segmentation model."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image
from pydantic import Field

from clipsweep.distill.teacher.images import DECODE_ERRORS, all_or_raise, decoders, prefetch
from clipsweep.projection.errors import BadInput
from clipsweep.projection.frames import NONE, Camera, PixelLabels


@dataclass(frozen=True)
class PrecomputedConfig:
    """Settings of the precomputed teacher: label images made elsewhere."""

    root: Annotated[
        str,
        Field(description="folder of the label images below the data root"),
    ] = "labels2d"
    map: Annotated[
        str,
        Field(description="what their ids mean, a file under configs/labels"),
    ] = "cityscapes19"
    size_hw: Annotated[
        tuple[Annotated[int, Field(ge=1, le=100_000)], Annotated[int, Field(ge=1, le=100_000)]],
        Field(description="height and width of the label images [px]"),
    ] = (512, 1024)


class Precomputed:
    """Teacher that reads the label images of any other 2D segmentation model.

    PNGs at the images' paths below a folder of their own, score 1.

    Args:
        data_root: root of the data set.
        label_root: folder of the label images, below the data root.
        class_of_id: class of each id in the images, 255 = none.
        classes: number of classes.
        size_hw: size that every label image must have [px].
        ids: number of ids that have a meaning, from 0 on; 255 is none, others are refused.
        store: folder of folders of converted images, each at its original's path; None: all images
            are originals.
    """

    def __init__(
        self,
        data_root: Path,
        label_root: str,
        class_of_id: UInt8[np.ndarray, "256"],
        classes: int,
        size_hw: tuple[int, int] = (512, 1024),
        ids: int = 256,
        store: Path | None = None,
    ) -> None:
        self._data_root = data_root
        self._label_root = label_root
        self._class_of_id = class_of_id
        self._classes = classes
        self._size_hw = (size_hw[0], size_hw[1])
        self._ids = ids
        self._store = store
        known = class_of_id[class_of_id != NONE]
        if known.size and known.max() >= classes:
            raise ValueError(f"an id stands for class {known.max()} of {classes}")

    @property
    def text(self) -> Float32[np.ndarray, "c c"]:
        """One-hot class embeddings: there is no text, each class is a direction of its own."""
        return np.eye(self._classes, dtype=np.float32)

    def digest(self) -> str:
        """Digest (sha256) of the table of ids, the size and the folder's name.

        The label files are not in it: hashing a data set's worth of them before every run would
        cost more than using them. Files that changed under the same name need a folder of another
        name.
        """
        table = self._class_of_id.tobytes()
        return hashlib.sha256(
            table + f"{self._classes} {self._size_hw} {self._label_root}".encode()
        ).hexdigest()

    def __call__(self, cameras: Sequence[Camera]) -> list[PixelLabels]:
        """Pixel labels of camera images, in order.

        Raises:
            BadInput: a label image is missing, damaged, not 8-bit, of another size, not below the
                label folder, or has an id without a meaning.
        """
        return all_or_raise(self.stream(cameras))

    def stream(self, cameras: Iterable[Camera]) -> Iterator[PixelLabels | BadInput]:
        """Streams pixel labels of any number of camera images, in order.

        An image that cannot be used leaves its error in its place.
        """
        threads = decoders(0)
        return prefetch(cameras, self._read, threads, 2 * threads)

    def ids(self, camera: Camera) -> list[int]:
        """Ids in the label image of a camera image."""
        return np.unique(_read_ids(self._path(camera), self._size_hw)).tolist()

    def _read(self, camera: Camera) -> PixelLabels:
        path = self._path(camera)
        ids = _read_ids(path, self._size_hw)
        unknown = ids[(ids >= self._ids) & (ids != NONE)]
        if unknown.size:
            problem = f"has the id {unknown.max()}, the map knows 0 to {self._ids - 1} and 255"
            raise BadInput(path, problem, "name the map of these images: teacher.precomputed.map")
        label = self._class_of_id[ids]
        return PixelLabels(label, (label != NONE).astype(np.float16))

    def _path(self, camera: Camera) -> Path:
        """Path of a camera's label image, checked to lie below the label folder."""
        image = camera.image.path
        root = (self._data_root / self._label_root).resolve()
        below = self._original(image)
        path = (root / below).with_suffix(".png").resolve()
        if not path.is_relative_to(root):
            raise BadInput(
                path,
                f"is not below the label folder {root}",
                "remove the link or correct the tables",
            )
        return path

    def _original(self, image: Path) -> Path:
        """Path of an image below the data root, or of what it was converted from."""
        if image.is_relative_to(self._data_root):
            return image.relative_to(self._data_root)
        if self._store and image.is_relative_to(self._store):
            return Path(*image.relative_to(self._store).parts[1:])
        raise BadInput(
            image, f"is not below the data root {self._data_root}", "index the data again"
        )


_BIT_DEPTH = 24
"""Byte of a PNG file that holds the bits of a sample, in its header chunk."""


def _read_ids(path: Path, size_hw: tuple[int, int]) -> UInt8[np.ndarray, "h w"]:
    """Reads the class ids of a label image (PNG).

    Its header and its checksums are checked before anything is decoded.
    """
    try:
        data = path.read_bytes()
        with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
            if image.mode not in ("L", "P"):
                raise BadInput(
                    path, f"has mode {image.mode}", "label images are 8-bit, one channel or palette"
                )
            if image.mode == "L" and data[_BIT_DEPTH] != 8:  # Pillow scales such values to 0..255
                problem = f"has {data[_BIT_DEPTH]} bits a pixel"
                raise BadInput(path, problem, "label images are 8-bit, one channel or palette")
            if (image.height, image.width) != size_hw:
                size = f"{image.height}x{image.width}"
                key = "teacher.precomputed.size_hw"
                raise BadInput(path, f"is {size} pixels, {key} is {size_hw}", f"set {key}")
            image.verify()  # decoding does not look at the checksums
        with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
            return np.array(image)
    except BadInput:
        raise
    except FileNotFoundError:
        raise BadInput(
            path, "does not exist", "make the label image, or correct teacher.precomputed.root"
        ) from None
    except DECODE_ERRORS as error:
        raise BadInput(path, f"cannot be decoded ({error})", "make the label image again") from None
