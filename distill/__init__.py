"""From images and names to a 3D network: teachers, student, objectives, training."""

import os

# OpenMP's threads spin while they wait; on a machine with other work that made a training step 18 times slower (LOG.md).
# It is read when torch is first imported, so it stands here.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
