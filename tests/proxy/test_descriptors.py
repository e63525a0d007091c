"""How many sockets a worker may have open, and what is said where they are too few."""

from __future__ import annotations

import subprocess
import sys

from sqlwall.config import load_config
from sqlwall.proxy.descriptors import shortage

RAISING = """
import resource
from sqlwall.proxy.descriptors import possible, raise_limit
resource.setrlimit(resource.RLIMIT_NOFILE, (100, 300))
assert possible() == 300
assert raise_limit() == 300
assert resource.getrlimit(resource.RLIMIT_NOFILE) == (300, 300)
assert raise_limit() == 300
"""


def test_the_soft_limit_is_raised_to_the_hard_one() -> None:
    subprocess.run([sys.executable, "-c", RAISING], check=True, timeout=60)


def test_what_is_missing_is_said_with_what_remains_possible() -> None:
    config = load_config(flags={"limits.max_connections": 5000})
    assert shortage(config, 1, 20_000) == ""
    assert shortage(config, 10, 1128) == ""
    assert shortage(config, 1, 1024) == (
        "this process may open 1024 files and sockets, and 5000 sessions need 10128: about 448 will be served"
    )
