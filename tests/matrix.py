"""``python -m tests.matrix FILE [pytest arguments]``: all tests on several servers, one after the other.

The file has the DSN of a superuser on each line; it is a file because arguments can be read by everyone on a machine.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
from pathlib import Path

import psycopg


def main() -> int:
    """Run them and print a line for each server; 1 if any test failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.matrix", description=__doc__)
    parser.add_argument("file", type=Path, help="one DSN a line")
    options, rest = parser.parse_known_args()
    lines: list[str] = []
    is_green = True
    for dsn in options.file.read_text().split():
        with psycopg.connect(dsn) as connection:
            version = connection.info.parameter_status("server_version")
        print(f"PostgreSQL {version}", flush=True)
        ran = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", *rest],
            env=os.environ | {"SQLWALL_TEST_DSN": dsn},
            stdout=subprocess.PIPE,
            text=True,
            check=False,
        )
        is_green = is_green and ran.returncode == 0
        failed = re.findall(r"^(?:FAILED|ERROR) (.*)", ran.stdout, re.MULTILINE)
        outcome = ran.stdout.strip().splitlines()[-1] if ran.stdout.strip() else f"status {ran.returncode}"
        lines.append("\n    ".join((f"PostgreSQL {version}: {outcome.strip('= ')}", *failed)))
        print(lines[-1], flush=True)
    print("\n".join(("", *lines)))
    return 0 if is_green else 1


if __name__ == "__main__":
    sys.exit(main())
