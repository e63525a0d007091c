"""How many files and sockets this process may have open, and whether that is enough for the sessions it is to serve."""

from __future__ import annotations

import resource

from sqlwall.config import Config

#: What a worker has open beside its sessions: store, log, port, observers, the parser, logins under way.
RESERVED = 128
#: As much as Linux gives any process by default; some systems say that there is no limit and mean it.
CEILING = 1_048_576


def raise_limit() -> int:
    """Raise the soft limit to the hard one, and say what holds now: 1,024 is usual, for select()."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = CEILING if hard == resource.RLIM_INFINITY else min(hard, CEILING)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        return wanted
    return CEILING if soft == resource.RLIM_INFINITY else soft


def possible() -> int:
    """What `raise_limit` would come to."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    return CEILING if hard == resource.RLIM_INFINITY else hard


def shortage(config: Config, workers: int, limit: int) -> str:
    """Why a worker could not serve its share of the sessions; empty if it could. A session is two sockets."""
    share = -(-config.limits.max_connections // workers)
    if 2 * share + RESERVED <= limit:
        return ""
    served = max(0, (limit - RESERVED) // 2)
    return (
        f"this process may open {limit} files and sockets, and {share} sessions need {2 * share + RESERVED}: "
        f"about {served} will be served"
    )
