"""Speed and memory, as ratios to named peers measured in the same run. ``python -m benchmarks``; see README.md."""

# Sets the thread policy that a user's process has, before anything loads torch. Both sides of a comparison run in
# the same process, so what helps the library helps its peer as well.
from ehrtrack.openmp import set_wait_policy

set_wait_policy()
