"""What became of transactions whose COMMIT was never seen answered: the server is asked, by their ids.

A snapshot is durable, index and blob, before COMMIT is sent, and its outcome is noted after. Whatever ends in
between, the wall, the server or the line, leaves it *prepared*, and `pg_xact_status` tells the truth later (DESIGN,
decision 8).
"""

from __future__ import annotations

import asyncio
import logging

from sqlwall.errors import SqlwallError, UpstreamError
from sqlwall.proxy.observer import Observer, Observers
from sqlwall.snapshot import queries
from sqlwall.store.index import SnapshotRecord, SnapshotState
from sqlwall.store.snapshots import Snapshots

logger = logging.getLogger(__name__)

#: What pg_xact_status says; a transaction in progress is left alone, and one too old to be known stays unknown.
OUTCOMES = {"committed": SnapshotState.COMMITTED, "aborted": SnapshotState.ABORTED}


async def settle_all(snapshots: Snapshots, observers: Observers) -> int:
    """Settle every snapshot whose outcome can be known now; how many are still open. Raises StoreError."""
    waiting: dict[str, list[SnapshotRecord]] = {}
    for record in await asyncio.to_thread(snapshots.unsettled):
        waiting.setdefault(record.database, []).append(record)
    still_open = 0
    for database, records in waiting.items():
        try:
            async with observers.borrow(database) as observer:
                for record in records:
                    still_open += not await _settle(record, snapshots, observer)
        except UpstreamError as error:
            logger.warning("snapshots of %s are not settled: %s", database, error)
            still_open += len(records)
    return still_open


async def _settle(record: SnapshotRecord, snapshots: Snapshots, observer: Observer) -> bool:
    """Whether its outcome is known now."""
    if record.system != observer.identity.system:
        logger.warning("snapshot %s is of another server: its outcome cannot be known", record.id)
        return False
    ((status,),) = await observer.fetch(queries.STATUS, (record.xid,))
    state = OUTCOMES.get(status or "")
    has_blob = state is None or await asyncio.to_thread(snapshots.has_blob, record)
    if state is SnapshotState.ABORTED and not has_blob:
        # The wall ended before the blob was kept: there is nothing to show of a write that never was.
        await asyncio.to_thread(snapshots.forget, record.id)
        return True
    if state is SnapshotState.COMMITTED and not has_blob:
        # COMMIT is sent once the blob is there: without it, the id has become another transaction's, or it was lost.
        logger.warning("snapshot %s has no blob: what became of its transaction is not known", record.id)
        state = status = None
    if state is None:
        if status is None and record.state is not SnapshotState.UNKNOWN:
            await asyncio.to_thread(snapshots.settle, record.id, SnapshotState.UNKNOWN)
        return False
    try:
        await asyncio.to_thread(snapshots.settle, record.id, state)
    except SqlwallError as error:
        logger.warning("snapshot %s: %s", record.id, error)
        return False
    return True
