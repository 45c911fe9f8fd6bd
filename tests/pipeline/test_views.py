"""Pictures: what is drawn of a frame with a single grey camera."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clipsweep.pipeline.datasets.checks import image_size
from clipsweep.pipeline.labels import LabelsConfig, load_space
from clipsweep.pipeline.reports.views import draw_frame
from clipsweep.projection.errors import BadInput
from clipsweep.projection.frames import Camera, Cloud, File, Frame, Sweep
from clipsweep.projection.fusion import FusionConfig
from clipsweep.projection.pose import Pose


def test_one_grey_camera_is_drawn_grey_and_alone(tmp_path: Path) -> None:
    path = tmp_path / "000000.png"
    Image.fromarray(np.arange(48, dtype=np.uint8).reshape(6, 8)).save(path)
    file = File(path, path.stat().st_size)
    K = np.array([[4.0, 0, 4], [0, 4, 3], [0, 0, 1]])
    sweep = Sweep(0, Pose.identity(), file)
    frame = Frame(
        "00/000000",
        "00",
        0,
        (sweep,),
        (Camera("image_0", 0, Pose.identity(), K, (6, 8), file),),
        None,
    )
    xyz = np.array([[0, 0, 5], [0, 0, -5]], np.float32)
    rest = np.zeros(2, np.float32)
    row = np.arange(2, dtype=np.int32)
    cloud = Cloud(xyz, rest, rest, np.zeros(2, np.uint8), row, np.zeros((1, 3), np.float32))
    label = np.array([0, 255], np.uint8)
    space = load_space(LabelsConfig(space="semantickitti19"))
    above, below = draw_frame(
        frame, cloud, label, None, space, FusionConfig(), "predictions"
    ).subfigs
    (axis,) = above.axes
    drawn = axis.images[0].get_array()
    assert drawn.shape == (6, 8, 3)
    assert (drawn == drawn[:, :, :1]).all()
    assert axis.collections[0].get_offsets().tolist() == [[4, 3]]
    assert len(below.axes) == 1


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 6\n%%EndComments\nshowpage\n%%EOF\n"


def test_only_jpeg_and_png_are_opened(tmp_path: Path) -> None:
    """Pillow would start Ghostscript for PostScript under any name."""
    path = tmp_path / "000000.png"
    path.write_bytes(EPS)
    file = File(path, len(EPS))
    with pytest.raises(BadInput, match="is no JPEG or PNG"):
        image_size(file)
    camera = Camera(
        "image_0", 0, Pose.identity(), np.eye(3) + 3 * np.diag([1.0, 1, 0]), (6, 8), file
    )
    frame = Frame("00/000000", "00", 0, (Sweep(0, Pose.identity(), file),), (camera,), None)
    nothing = np.zeros(0, np.float32)
    place = np.zeros((0, 3), np.float32)
    cloud = Cloud(place, nothing, nothing, np.zeros(0, np.uint8), np.zeros(0, np.int32), place)
    space = load_space(LabelsConfig(space="semantickitti19"))
    with pytest.raises(BadInput, match="cannot be decoded"):
        draw_frame(frame, cloud, np.zeros(0, np.uint8), None, space, FusionConfig(), "predictions")
