"""Pictures: what is drawn of a frame with a single grey camera."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from pipeline.labels import LabelsConfig, load_space
from pipeline.views import draw_frame
from projection.frames import Camera, Cloud, File, Frame, Sweep
from projection.fusion import FusionConfig
from projection.pose import Pose


def test_one_grey_camera_is_drawn_grey_and_alone(tmp_path: Path) -> None:
    path = tmp_path / "000000.png"
    Image.fromarray(np.arange(48, dtype=np.uint8).reshape(6, 8)).save(path)
    file = File(path, path.stat().st_size)
    K = np.array([[4.0, 0, 4], [0, 4, 3], [0, 0, 1]])
    sweep = Sweep(0, Pose.identity(), file)
    frame = Frame("00/000000", "00", 0, (sweep,), (Camera("image_0", 0, Pose.identity(), K, (6, 8), file),), None)
    xyz = np.array([[0, 0, 5], [0, 0, -5]], np.float32)
    rest = np.zeros(2, np.float32)
    cloud = Cloud(xyz, rest, rest, np.zeros(2, np.uint8), np.arange(2, dtype=np.int32))
    label, space = np.array([0, 255], np.uint8), load_space(LabelsConfig(space="semantickitti19"))
    above, below = draw_frame(frame, cloud, label, None, space, FusionConfig(), "title").subfigs
    (axis,) = above.axes
    drawn = axis.images[0].get_array()
    assert drawn.shape == (6, 8, 3)
    assert (drawn == drawn[:, :, :1]).all()
    assert axis.collections[0].get_offsets().tolist() == [[4, 3]]
    assert len(below.axes) == 1
