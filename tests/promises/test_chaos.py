"""Under load, with workers killed, the store stalled, clients that tear, ignore, cancel and reset, and rulesets
reloaded: no unjudged statement, no lost record, no stuck session, no write without its snapshot.

``SQLWALL_CHAOS_SECONDS`` says for how long, ``SQLWALL_CHAOS_SEED`` how, ``SQLWALL_CHAOS_WORKERS`` with how many workers.
"""

from __future__ import annotations

import os
import secrets
from pathlib import Path

import pytest

from tests.promises.chaos import raging
from tests.promises.crash import mortal_cluster

#: Short enough for every run of the tests; by hand there may be hours.
SECONDS = float(os.environ.get("SQLWALL_CHAOS_SECONDS", "8"))
WORKERS = int(os.environ.get("SQLWALL_CHAOS_WORKERS", "2"))


# A driver whose login is broken off leaves its socket to the collector.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.timeout(240 + 3 * SECONDS)
def test_chaos_under_load_breaks_no_promise(tmp_path: Path) -> None:
    seed = os.environ.get("SQLWALL_CHAOS_SEED") or secrets.token_hex(4)
    print(f"seed {seed}")
    with mortal_cluster() as cluster, raging(cluster, tmp_path, seed, WORKERS) as chaos:
        chaos.start_writers()
        chaos.rage(SECONDS)
        found = [*chaos.calm(), *chaos.settle(), *chaos.findings()]
        print(chaos.summary(), *found, sep="\n", flush=True)
        assert found == []
