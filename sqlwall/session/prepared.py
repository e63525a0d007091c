"""What the names of a session stand for: prepared statements and portals, as far as the replies have confirmed them.

PostgreSQL keeps protocol-level and SQL-level prepared statements in one namespace, and portals and cursors in another.
Where it is open which of two texts a name stands for (a PREPARE in a string whose outcome is not known yet), the name
stands for both and both are judged.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from sqlwall.sql.statement import Statement


@dataclass(frozen=True, slots=True)
class Prepared:
    """A prepared text and its facts. `statement` is None for an empty text, which executes to EmptyQueryResponse."""

    text: bytes
    statement: Statement | None


Candidates = tuple[Prepared, ...]


@dataclass(slots=True)
class Names:
    """One namespace. `confirmed` is what the server has acknowledged; `pending` what this segment asked for."""

    confirmed: dict[bytes, Candidates] = field(default_factory=dict)
    pending: dict[bytes, Candidates] = field(default_factory=dict)

    def find(self, name: bytes) -> Candidates | None:
        """What `name` stands for if all before it in the segment succeeds; None if it does not exist.

        If something before it fails, the server skips the message that names it, so the pending meaning suffices.
        """
        found = self.pending.get(name)
        return found if found is not None else self.confirmed.get(name)

    def expect(self, name: bytes, meaning: Candidates) -> None:
        """The segment defines `name`; it holds once `confirm` is called."""
        self.pending[name] = meaning

    def confirm(self, name: bytes, meaning: Candidates) -> None:
        """The server acknowledged the definition."""
        self.confirmed[name] = meaning

    def add(self, name: bytes, meaning: Prepared) -> None:
        """`name` may stand for `meaning` from now on, and may still stand for what it stood for."""
        known = self.find(name) or ()
        if meaning not in known:
            known = (*known, meaning)
        self.confirmed[name] = known
        self.pending.pop(name, None)

    def forget(self, name: bytes) -> None:
        """The server acknowledged that the name is gone."""
        self.confirmed.pop(name, None)
        self.pending.pop(name, None)

    def settle(self) -> None:
        """The segment is over: what was not confirmed was not defined."""
        self.pending.clear()

    def clear(self) -> None:
        """The server dropped every name."""
        self.confirmed.clear()
        self.pending.clear()
