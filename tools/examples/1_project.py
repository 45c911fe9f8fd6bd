"""Example: projects the point cloud of a key frame into its cameras, with z-buffer occlusion.

Counts the points that each camera sees.

usage: python tools/examples/1_project.py configs/demo.yaml [key=value ...]
"""

import sys
from pathlib import Path

from clipsweep import load_config, merge, read_index
from clipsweep.pipeline.artifacts.read import sweep_layout
from clipsweep.pipeline.demo.make import make_demo
from clipsweep.pipeline.stages.index import make_index, scenes_of
from clipsweep.projection.fusion import visible_pairs

if len(sys.argv) < 2:
    sys.exit(__doc__)
config = load_config(sys.argv[1:])
if config.make_demo:
    make_demo(config, Path(config.data.root))
index = make_index(config)
frame = read_index(index.payload("index"), Path(config.data.root), scenes_of(index)[0])[0]

cloud = merge(frame, 1, sweep_layout(config))
pairs = visible_pairs(frame, cloud.xyz, config.fusion)
print(f"{frame.id}: {len(cloud.xyz)} points")
for number, camera in enumerate(frame.cameras):
    print(f"{camera.name}: {(pairs.camera == number).sum()} points seen")
