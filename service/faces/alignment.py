"""Five-point alignment and head pose: pure geometry on landmarks."""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

Float64 = NDArray[np.float64]
UInt8 = NDArray[np.uint8]

# ArcFace's template (Deng et al., CVPR 2019): five points in a crop of 112 x 112 pixels.
ARCFACE_TEMPLATE = (
    (38.2946, 51.6963),
    (73.5318, 51.5014),
    (56.0252, 71.7366),
    (41.5493, 92.3655),
    (70.7299, 92.2041),
)
ARCFACE_SIZE = 112

# A face in millimetres, nose tip at the origin; x to the viewer's right, y down, z away from the
# camera. Order as in Face.landmarks. x and y: the median of RetinaFace's landmarks on FERPlus,
# with the eyes 63 mm apart, so that the median face has no pitch; z: an adult's mean profile.
FACE_MODEL_MM = np.array(
    [
        (-31.5, -36.0, 27.0),
        (31.5, -36.0, 27.0),
        (0.0, 0.0, 0.0),
        (-24.5, 29.0, 25.0),
        (24.5, 29.0, 25.0),
    ]
)
# Mouth corners move with the expression (a smile lifts them, which looks like a lowered head), so
# eyes and nose count four times.
WEIGHTED_POINTS = (*(0, 1, 2) * 4, 3, 4)
WEIGHTED_MODEL_MM = FACE_MODEL_MM[WEIGHTED_POINTS, :]
# Camera distance in sizes of the face. Far, since a crop does not tell how near its camera was.
CAMERA_DISTANCE = 10.0
CAMERA = np.diag((CAMERA_DISTANCE, CAMERA_DISTANCE, 1.0))


@dataclass(frozen=True)
class HeadPose:
    """Head rotation in degrees, (0, 0, 0) facing the camera.

    Positive yaw: the head is turned to the viewer's right; positive pitch: it looks down;
    positive roll: it leans clockwise as the viewer sees it.
    """

    yaw: float
    pitch: float
    roll: float


def similarity_transform(source: ArrayLike, target: ArrayLike) -> Float64:
    """Least-squares similarity [2,3] float64 that maps `source` to `target`, both [P,2].

    Rotation, uniform scale and shift, never a reflection (Umeyama, PAMI 1991). Raises ValueError
    where the source points coincide or a coordinate is not finite.
    """
    points, goals = np.asarray(source, np.float64), np.asarray(target, np.float64)
    if points.shape != goals.shape or points.ndim != 2 or points.shape[1] != 2:
        raise ValueError(f"expected two [P,2] arrays, got {points.shape} and {goals.shape}")
    # In the plane a similarity is multiplication by one complex number, and a shift.
    z, goal = (np.ascontiguousarray(each).view(np.complex128)[:, 0] for each in (points, goals))
    z_mean, goal_mean = z.mean(), goal.mean()
    centred = z - z_mean
    variance = np.vdot(centred, centred).real
    if not math.isfinite(variance) or variance < 1e-9:
        raise ValueError("the source points coincide or are not finite")
    factor = complex(np.vdot(centred, goal - goal_mean) / variance)
    shift = complex(goal_mean - factor * z_mean)
    rows = (factor.real, -factor.imag, shift.real), (factor.imag, factor.real, shift.imag)
    return np.array(rows, np.float64)


def compose(second: ArrayLike, first: ArrayLike) -> Float64:
    """The affine [2,3] that applies `first` [2,3], then `second` [2,3]."""
    lower = np.array([[0.0, 0.0, 1.0]])
    product = np.vstack((second, lower)) @ np.vstack((first, lower))
    return np.asarray(product[:2], np.float64)


def scaled_template(template: ArrayLike, size: int) -> Float64:
    """A template [5,2] given for 112 x 112 pixels, for a crop of `size` x `size` pixels."""
    return np.asarray(template, np.float64) * (size / ARCFACE_SIZE)


def warp_crop(image: UInt8, matrix: ArrayLike, size: int) -> UInt8:
    """The aligned crop [size,size,3] uint8 RGB.

    `image` is [H,W,3] uint8 RGB; `matrix` [2,3] maps its pixels to the crop's. What lies outside
    the image repeats its border. A face larger than the crop is shrunk by whole-pixel averaging
    first, since bilinear sampling alone would alias.
    """
    transform = np.asarray(matrix, np.float64)
    scale = float(np.hypot(transform[0, 0], transform[1, 0]))
    if scale < 0.5:
        image, transform = _shrunk_region(image, transform, size, int(1 / scale))
    crop = cv2.warpAffine(
        image, transform, (size, size), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
    )
    return np.asarray(crop, np.uint8)


def _shrunk_region(
    image: UInt8, transform: Float64, size: int, factor: int
) -> tuple[UInt8, Float64]:
    """The part of `image` that the crop needs, shrunk by `factor`, and its transform."""
    inverse = cv2.invertAffineTransform(transform)
    corners = np.array([(0, 0, 1), (size, 0, 1), (0, size, 1), (size, size, 1)]) @ inverse.T
    height, width = image.shape[:2]
    low = np.clip(np.floor(corners.min(0)) - factor, 0, (width - 1, height - 1)).astype(int)
    high = np.clip(np.ceil(corners.max(0)) + factor, low + 1, (width, height)).astype(int)
    # Whole blocks, which are averaged many times faster; the image's border goes on beyond it.
    shape = -(-(high - low) // factor)
    right, bottom = low + shape * factor
    region = image[low[1] : bottom, low[0] : right]
    over = (max(0, right - width), max(0, bottom - height))
    if any(over):
        padded = cv2.copyMakeBorder(region, 0, over[1], 0, over[0], cv2.BORDER_REPLICATE)
        region = np.asarray(padded, np.uint8)
    shrunk = cv2.resize(region, shape.tolist(), interpolation=cv2.INTER_AREA)
    # Pixel centres: x_region = (x_shrunk + 0.5) * factor - 0.5.
    back = np.column_stack((np.diag((factor, factor)), low + (factor - 1) / 2))
    return np.asarray(shrunk, np.uint8), compose(transform, back)


def head_pose(landmarks: ArrayLike) -> HeadPose:
    """Head pose from five landmarks [5,2] in pixels.

    Perspective-n-point against a mean face seen from afar (nearly orthographic), so neither the
    size of the image nor where the face is in it matters. Five points carry little: expect errors
    of about 10 degrees. Landmarks that fit no pose give (0, 0, 0).
    """
    points = np.asarray(landmarks, np.float64).reshape(5, 2)
    centred = points - points.mean(0)
    spread = float(np.abs(centred).max())
    if not math.isfinite(spread) or spread == 0:
        return HeadPose(0.0, 0.0, 0.0)
    found, rotation_vector, _ = cv2.solvePnP(
        WEIGHTED_MODEL_MM,
        (centred / spread)[WEIGHTED_POINTS, None],
        CAMERA,
        None,
        flags=cv2.SOLVEPNP_SQPNP,
    )
    if not found or not np.isfinite(rotation_vector).all():
        return HeadPose(0.0, 0.0, 0.0)
    rotation, _ = cv2.Rodrigues(rotation_vector)
    return _euler_angles(np.asarray(rotation, np.float64))


def _euler_angles(rotation: Float64) -> HeadPose:
    """Yaw, pitch, roll of R = R_z(roll) R_x(pitch) R_y(-yaw), in degrees."""
    (_, r01, _), (_, r11, _), (r20, r21, r22) = rotation.tolist()
    pitch = math.degrees(math.asin(max(-1.0, min(r21, 1.0))))
    yaw = math.degrees(math.atan2(r20, r22))
    roll = math.degrees(math.atan2(-r01, r11))
    return HeadPose(yaw, pitch, roll)
