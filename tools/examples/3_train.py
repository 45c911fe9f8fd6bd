"""Example: trains a student on pseudo-labels, making first whatever that needs.

usage: python tools/examples/3_train.py configs/demo.yaml [train.epochs=1] [key=value ...]
"""

import json
import sys

from clipsweep import load_config
from clipsweep.pipeline.stages.pretrain import make_pretrained

if len(sys.argv) < 2:
    sys.exit(__doc__)
student = make_pretrained(load_config(sys.argv[1:]))
last = (student.path / "metrics.jsonl").read_text().splitlines()[-1]
print(f"{student.path}: loss {json.loads(last)['loss']:.2f} at the last step")
