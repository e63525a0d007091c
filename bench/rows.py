"""The rows of the table, in its order."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from bench import alone, compared
from bench.stage import Stage

ROWS: Mapping[str, Callable[[Stage], None]] = MappingProxyType(
    {
        "prepared": compared.measure_prepared,
        "extended": compared.measure_extended,
        "simple": compared.measure_simple,
        "tpcb": compared.measure_tpcb,
        "transaction": compared.measure_transaction,
        "latency": compared.measure_latency,
        "workers": compared.measure_workers,
        "stream": compared.measure_stream,
        "idle": alone.measure_idle,
        "miss": alone.measure_misses,
        "guarded": alone.measure_guarded,
        "start": alone.measure_start,
        "micro": alone.measure_micro,
    }
)
