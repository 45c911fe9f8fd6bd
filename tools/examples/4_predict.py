"""Example: semantic segmentation of a LiDAR sweep file with a trained student.

usage: python tools/examples/4_predict.py STUDENT_FOLDER SWEEP.bin [COLUMNS]
"""

import sys

import numpy as np

from clipsweep import load_student

if len(sys.argv) < 3:
    sys.exit(__doc__)
student = load_student(sys.argv[1])
columns = int(sys.argv[3]) if len(sys.argv) > 3 else 5
points = np.fromfile(sys.argv[2], np.float32).reshape(-1, columns)
points = points[(abs(points[:, :2]) > 1).any(1)]  # without the returns of the car itself
label = student.predict(points[:, :3], points[:, 3] / 255)  # metres, intensity 0..1
for row in np.unique(label):
    print(f"{student.names[row]}: {(label == row).sum()} points")
