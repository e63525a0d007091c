"""What one connection's open transaction does to definitions: what is kept before a TRUNCATE or DROP TABLE runs, what
it counted is measured right behind it, and at the gate the server is asked what of all that stands.
"""

from __future__ import annotations

from dataclasses import replace

from sqlwall.proxy.drops import Drops
from sqlwall.proxy.gate import Permission
from sqlwall.proxy.guard import Keeper
from sqlwall.proxy.keeping import Ask, Findings, Refusal, ServerError, TooMany, denied
from sqlwall.proxy.labels import SessionLabels
from sqlwall.proxy.truncations import Truncations
from sqlwall.rules.verdict import Verdict
from sqlwall.snapshot import catalogs
from sqlwall.sql.removals import Emptying, Removal
from sqlwall.wire.frames import Frame


class Definitions:
    """The definitions of one connection."""

    def __init__(self, ask: Ask, keeper: Keeper, labels: SessionLabels) -> None:
        self._counters = keeper.counters
        self._truncations = Truncations(ask, keeper, labels)
        self._drops = Drops(ask, keeper, labels)

    def forget(self) -> None:
        """The transaction is over."""
        self._truncations.forget()
        self._drops.forget()

    async def before(
        self, wanted: Emptying | Removal, verdict: Verdict, permission: Permission
    ) -> Verdict | TooMany | Frame | None:
        """Keep what the statement is about to remove.

        A Verdict says why it may not run, a Frame is an error that is the client's answer. None lets it run; whatever
        nobody has looked at then, the gate refuses. Raises SqlwallError where observer or store cannot be used.
        """
        try:
            if isinstance(wanted, Emptying):
                return await self._truncations.before(wanted, verdict.limits, permission)
            return await self._drops.before(wanted, verdict.limits)
        except ServerError as error:
            return error.frame
        except Refusal as refusal:
            self._counters.snapshot_taken(f"refused: {refusal.uncovered.kind}")
            return denied(verdict, refusal.uncovered, refusal.hint)

    async def after(self) -> Frame | None:
        """The statement has run. An error is the transaction's end, and the client's answer."""
        try:
            await self._truncations.after()
            await self._drops.after()
        except ServerError as error:
            return error.frame
        return None

    async def find(self) -> Findings:
        """What stands of all that. Raises ServerError."""
        emptied = await self._truncations.find()
        dropped = await self._drops.find()
        explained = replace(
            emptied.explained,
            catalogs=catalogs.total((emptied.explained.catalogs, dropped.explained.catalogs)),
            locked=emptied.explained.locked | dropped.explained.locked,
            moved=dropped.explained.moved,
            gone=dropped.explained.gone,
        )
        return replace(emptied, explained=explained, moves=dropped.moves)
