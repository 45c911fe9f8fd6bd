"""Decodes ROS messages: point clouds, images, camera calibrations, poses."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from PIL import Image

from clipsweep.projection.errors import BadInput
from clipsweep.projection.pose import Pose

_TYPES = ("i1", "u1", "i2", "u2", "i4", "u4", "f4", "f8")
"""NumPy types of sensor_msgs/PointField's datatypes, from 1 on."""
_MODELS = {
    "": "none",
    "none": "none",
    "plumb_bob": "plumb_bob",
    "rational_polynomial": "rational_polynomial",
    "equidistant": "fisheye",
    "fisheye": "fisheye",
}
_ENCODINGS = {
    "rgb8": ("RGB", "RGB"),
    "bgr8": ("RGB", "BGR"),
    "rgba8": ("RGB", "RGBX"),
    "bgra8": ("RGB", "BGRX"),
    "mono8": ("L", "L"),
    "8UC1": ("L", "L"),
    "8UC3": ("RGB", "BGR"),
}
"""Pillow's mode and raw mode of sensor_msgs/Image's encodings."""
JPEG_QUALITY = 95


def stamp_us(message: Any) -> int:
    """Time in a message's header [us]."""
    stamp = message.header.stamp
    return int(stamp.sec) * 10**6 + int(stamp.nanosec) // 1000


def frame_of(message: Any) -> str:
    """Coordinate frame in a message's header; tf2 has no leading slash."""
    return str(message.header.frame_id).lstrip("/")


def point_fields(message: Any, where: str) -> dict[str, np.ndarray]:
    """Fields of a sensor_msgs/PointCloud2 as columns, by name, rows in order.

    Args:
        message: the cloud.
        where: its topic, for messages.

    Raises:
        BadInput: sizes, offsets or types do not fit the data.
    """
    order = ">" if message.is_bigendian else "<"
    fields = [field for field in message.fields if field.name]
    try:
        formats = [f"{order}{_TYPES[_kind(field)]}" for field in fields]
        shaped = [
            (kind, (int(field.count),)) if field.count > 1 else kind
            for kind, field in zip(formats, fields, strict=True)
        ]
        point = np.dtype(
            {
                "names": [field.name for field in fields],
                "formats": shaped,
                "offsets": [int(field.offset) for field in fields],
                "itemsize": int(message.point_step),
            }
        )
        rows = np.frombuffer(bytes(message.data), np.uint8)
        rows = rows.reshape(int(message.height), int(message.row_step))
        used = np.ascontiguousarray(rows[:, : int(message.width) * int(message.point_step)])
        points = used.reshape(-1).view(point)
    except (ValueError, TypeError, IndexError) as error:
        raise BadInput(
            where, f"holds a point cloud that does not fit its sizes ({error})"
        ) from None
    return {field.name: points[field.name] for field in fields}


def _kind(field: Any) -> int:
    """Index of a field's type; datatypes count from 1."""
    kind = int(field.datatype)
    if not 1 <= kind <= len(_TYPES):
        raise IndexError(f"datatype {kind}")
    return kind - 1


def image_file(message: Any, kind: str, where: str) -> tuple[bytes, str]:
    """Bytes and ending of the image file of a sensor_msgs/Image or CompressedImage.

    JPEG and PNG stay as they are; raw images become JPEG.

    Raises:
        BadInput: its format or encoding cannot be used, or sizes do not fit the data.
    """
    data = bytes(message.data)
    if kind.endswith("CompressedImage"):
        if data.startswith(b"\xff\xd8"):
            return data, ".jpg"
        if data.startswith(b"\x89PNG"):
            return data, ".png"
        raise BadInput(where, f"is compressed as {message.format!r}", "JPEG and PNG can be read")
    encoding = str(message.encoding)
    if encoding not in _ENCODINGS:
        known = ", ".join(_ENCODINGS)
        raise BadInput(where, f"has the encoding {encoding!r}", f"these can be read: {known}")
    mode, raw = _ENCODINGS[encoding]
    size = (int(message.width), int(message.height))
    try:
        image = Image.frombytes(mode, size, data, "raw", raw, int(message.step), 1)
    except (ValueError, OSError) as error:
        raise BadInput(where, f"holds an image that does not fit its sizes ({error})") from None
    out = io.BytesIO()
    image.save(out, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    return out.getvalue(), ".jpg"


def calibration(message: Any, rectified: bool, where: str) -> dict[str, Any]:
    """Intrinsics of a sensor_msgs/CameraInfo, as ``rig.yaml`` writes a camera.

    Args:
        message: the calibration.
        rectified: its images are rectified: they have the projection matrix and no distortion.
        where: its topic, for messages.

    Raises:
        BadInput: its model is unknown, or it is of a part of the image.
    """
    size = [int(message.width), int(message.height)]
    part = (message.roi.x_offset, message.roi.y_offset, message.roi.width, message.roi.height)
    if any(part) and part != (0, 0, *size[:1], size[1]):
        raise BadInput(where, f"is of a part of the image, {part}", "record whole images")
    if rectified:
        projection = np.array(_entry(message, "p"), np.float64).reshape(3, 4)
        return {"K": projection[:, :3].tolist(), "size": size}
    model = str(message.distortion_model)
    if model not in _MODELS:
        raise BadInput(where, f"has the distortion model {model!r}", f"known: {', '.join(_MODELS)}")
    coefficients = [float(value) for value in _entry(message, "d")]
    lens = {"model": _MODELS[model], "coefficients": coefficients}
    if _MODELS[model] != "fisheye" and not any(coefficients):
        lens = {"model": "none"}
    K = np.array(_entry(message, "k"), np.float64).reshape(3, 3)
    return {"K": K.tolist(), "size": size, "distortion": lens}


def _entry(message: Any, name: str) -> Any:
    """Array of a CameraInfo: ROS 1 calls it K, ROS 2 k."""
    return (
        getattr(message, name, None) if hasattr(message, name) else getattr(message, name.upper())
    )


def pose_of(position: Any, orientation: Any, where: str) -> Pose:
    """Pose of a geometry_msgs position and quaternion.

    Raises:
        BadInput: the quaternion is not of unit length, or a number is not finite.
    """
    wxyz = (orientation.w, orientation.x, orientation.y, orientation.z)
    try:
        return Pose.from_quaternion(wxyz, (position.x, position.y, position.z))
    except ValueError as error:
        raise BadInput(where, str(error)) from None
