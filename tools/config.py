"""Explains configuration keys: their defaults and what they mean.

usage: python tools/config.py [KEY ...]

A KEY may be whole (fusion.limits), a group (fusion) or a part of one; without any, all keys are listed.
"""

import sys
from collections.abc import Sequence

from clipsweep.pipeline.config import Config, describe, did_you_mean


def run(wanted: Sequence[str]) -> int:
    """Prints the keys that match; 1 where one of those wanted matches none."""
    rows = list(describe(Config))
    status = 0
    for part in wanted or ("",):
        found = [row for row in rows if row[0] == part] or [row for row in rows if part in row[0]]
        for key, default, text in found:
            sys.stdout.write(f"{key}={default}\n    {text}\n")
        if not found:
            sys.stderr.write(f"error: no key {part!r}; {did_you_mean(part)}\n")
            status = 1
    return status


if __name__ == "__main__":
    if {"-h", "--help"} & set(sys.argv[1:]):
        sys.stdout.write(__doc__)
    else:
        sys.exit(run(sys.argv[1:]))
