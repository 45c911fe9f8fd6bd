"""Cross-modal distillation, camera images to point clouds: teachers, student, losses, training."""

import os

# OpenMP's threads spin while they wait; beside other work that made a training step 18 times slower
# (LOG.md). The variable is read when torch is first imported, so it is set here.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
