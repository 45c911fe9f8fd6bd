"""Label-efficient fine-tuning protocols (1 %, 10 %): which training frames keep their labels."""

from __future__ import annotations

import re
from collections.abc import Sequence
from fractions import Fraction

from clipsweep.projection.errors import BadInput
from clipsweep.projection.frames import Frame

_FORM = re.compile(r"(scene|frame)@([0-9]{1,3}(?:\.[0-9]{1,9})?)%")


def labelled_subset(protocol: str, frames: Sequence[Frame]) -> list[Frame]:
    """Label-efficient subset: the training frames whose labels a protocol gives.

    It is drawn by rule, without a random state, so that it is the same everywhere. ``scene@k%``
    takes every (100/k)-th scene whole (SLidR, Seal, SuperFlow, LiMoE), ``frame@k%`` every
    (100/k)-th key frame (CLIP2Scene): ``index % (100/k) == 0`` in the official order of the split,
    so at least one. The two are not to be compared with each other: frames of all scenes are easier
    to train on than all frames of a few scenes.

    Args:
        protocol: such as ``scene@1%``.
        frames: the training frames in official order of scenes, then of time.

    Raises:
        BadInput: no protocol of that form, or a share of labels that does not divide 100 % or is
            below 0.01 %.
    """
    match = _FORM.fullmatch(protocol)
    share = Fraction(match[2]) if match else Fraction(0)
    if not match or not Fraction(1, 100) <= share <= 100 or 100 % share:
        shares = "a share that divides 100: 1, 5, 10, 25, 50, 100, ..."
        raise BadInput(
            "protocol", f"{protocol!r} is none", f"write scene@1% or frame@1%, with {shares}"
        )
    step = int(100 / share)
    if match[1] == "frame":
        return list(frames[::step])
    scenes = list(dict.fromkeys(frame.scene for frame in frames))[::step]
    return [frame for frame in frames if frame.scene in scenes]
