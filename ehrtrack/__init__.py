"""EHRTrack: survival models on electronic health records, with every run tracked and every claim checkable."""

import os

# Threads that spin for long between two kernels take the core from any other process that wants it; threads that sleep
# at once cost a third of a quiet machine. So GNU's OpenMP spins for some microseconds; others know the policy alone.
# Both are read once, when torch loads OpenMP; where the user set one of them, neither is touched.
if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys():
    os.environ.update(OMP_WAIT_POLICY="PASSIVE", GOMP_SPINCOUNT="1000")
