"""EHRTrack: survival models on electronic health records, with every run tracked and every claim checkable."""

import os

# OpenMP threads that spin while they wait make a step several times slower when another process wants the cores.
# It is read once, when torch loads OpenMP; a value that the user set is kept.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
