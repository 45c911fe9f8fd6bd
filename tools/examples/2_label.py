"""Example: labels the images of a scene with CLIP and fuses them to pseudo-labels of points.

usage: python tools/examples/2_label.py configs/demo.yaml [key=value ...]
"""

import sys
from pathlib import Path

import numpy as np

from clipsweep import label_scene, load_config, read_index
from clipsweep.pipeline.artifacts.read import sweep_layout
from clipsweep.pipeline.labels import load_space
from clipsweep.pipeline.stages.index import make_index, scenes_of
from clipsweep.pipeline.stages.pixels import open_teacher

if len(sys.argv) < 2:
    sys.exit(__doc__)
config = load_config(sys.argv[1:])
index = make_index(config)
frames = read_index(index.payload("index"), Path(config.data.root), scenes_of(index)[0])
space = load_space(config.labels)
teacher = open_teacher(config, space)

labels = label_scene(
    frames,
    lambda frame: teacher(frame.cameras),
    config.fusion,
    len(space),
    sweep_layout(config),
    space.limits,
)
for frame, points in labels:
    counts = np.bincount(points.label, minlength=256)[: len(space)]
    most = ", ".join(f"{counts[i]} {space.names[i]}" for i in np.argsort(-counts)[:3])
    print(f"{frame.id}: {most}")
