"""Runs a program and writes what it cost: ``python -S launch.py REPORT PROGRAM ARGUMENT...``.

A program's ``ru_maxrss`` is no lower than the memory of the process that started it, which it shares until it
becomes another program. So it is started from here, where next to nothing is loaded.
"""

import json
import os
import sys
import time


def main() -> None:
    report, command = sys.argv[1], sys.argv[2:]
    started = time.monotonic()
    pid = os.posix_spawn(command[0], command, os.environ)
    _, status, usage = os.wait4(pid, 0)
    cost = {
        "exit_code": os.waitstatus_to_exitcode(status),
        "wall_seconds": time.monotonic() - started,
        "cpu_seconds": usage.ru_utime + usage.ru_stime,
        "peak_bytes": usage.ru_maxrss * 1024,
    }
    with open(report, "w") as file:
        json.dump(cost, file)


if __name__ == "__main__":
    main()
