"""From cameras to network input: bytes checked, decoded by threads ahead of the model, resized."""

from __future__ import annotations

import io
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import numpy as np
from jaxtyping import UInt8
from PIL import Image, UnidentifiedImageError

from projection.errors import BadInput
from projection.frames import Camera

In = TypeVar("In")
Out = TypeVar("Out")


def decode(camera: Camera, size_hw: tuple[int, int]) -> UInt8[np.ndarray, "h w 3"]:
    """A camera's image stretched to a size, RGB.

    A JPEG that is much larger is decoded at a half, quarter or eighth, never below the size asked for, then resized with
    an antialiased bicubic filter as CLIP's own preprocessing does.

    Raises:
        BadInput: the file is gone, changed, cut short, no JPEG or PNG, or of another size than the camera's.
    """
    path, data = camera.image.path, camera.image.read()
    try:
        with Image.open(io.BytesIO(data), formats=("JPEG", "PNG")) as image:
            if (image.height, image.width) != tuple(camera.size_hw):
                size = f"{image.height}x{image.width}"
                raise BadInput(path, f"is {size} pixels, its camera {camera.size_hw}", "correct the tables or the file")
            image.draft("RGB", size_hw[::-1])
            resized = image.convert("RGB").resize(size_hw[::-1], Image.Resampling.BICUBIC)
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        if isinstance(error, BadInput):
            raise
        raise BadInput(path, f"cannot be decoded ({error})", "restore the file") from None
    return np.asarray(resized)


def prefetch(items: Iterable[In], work: Callable[[In], Out], threads: int, ahead: int) -> Iterator[Future[Out]]:
    """Does work on items in threads, at most ``ahead`` results before they are taken; futures in the items' order."""
    pool = ThreadPoolExecutor(threads, thread_name_prefix="decode")
    waiting: deque[Future[Out]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(work, item))
            if len(waiting) > ahead:
                yield waiting.popleft()
        while waiting:
            yield waiting.popleft()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
