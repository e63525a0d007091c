"""What a wall is told: ``sqlwall.yaml``, then ``SQLWALL_*`` from the environment, then flags, in rising order.

Every setting is a field of a section, with its meaning beside it. Knows no other room: whether a certificate fits its
key is for who uses it.
"""

from __future__ import annotations

from sqlwall.config.load import load_config, settings
from sqlwall.config.settings import (
    Audit,
    Config,
    Limits,
    Listen,
    Log,
    Metrics,
    Ruleset,
    Store,
    Timeouts,
    Tls,
    Upstream,
    Workers,
)
from sqlwall.config.values import Secret

__all__ = [
    "Audit",
    "Config",
    "Limits",
    "Listen",
    "Log",
    "Metrics",
    "Ruleset",
    "Secret",
    "Store",
    "Timeouts",
    "Tls",
    "Upstream",
    "Workers",
    "load_config",
    "settings",
]
