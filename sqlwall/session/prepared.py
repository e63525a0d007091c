"""What the names of a session stand for: prepared statements and portals, as far as the replies have confirmed them.

PostgreSQL keeps protocol-level and SQL-level prepared statements in one namespace, and portals and cursors in another.
Where it is open which of two texts a name stands for (a PREPARE in a string whose outcome is not known yet), the name
stands for both and both are judged.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from sqlwall.sql.statement import Statement

#: The server keeps so many bytes of a name and no more, of the protocol's, too (NAMEDATALEN - 1, pg_config_manual.h).
NAME_BYTES: Final = 63


def kept_name(name: bytes) -> bytes:
    """What the server knows a name in a message by: two that differ further back are one (utils/hash/dynahash.c).

    It cuts these between any two bytes; those in texts are cut between characters, by the parser.
    """
    return name[:NAME_BYTES]


@dataclass(frozen=True, slots=True)
class Prepared:
    """A prepared text and its facts. `statement` is None for an empty text, which executes to EmptyQueryResponse.

    `is_body` says that the text is a PREPARE or DECLARE, and that its name stands for what was prepared in it.
    """

    text: bytes
    statement: Statement | None
    is_body: bool = False


Candidates = tuple[Prepared, ...]


def control_of(found: Candidates | None) -> Prepared | None:
    """The transaction control among what a name may stand for."""
    for one in found or ():
        if is_control(one):
            return one
    return None


def is_control(one: Prepared) -> bool:
    """Whether what was prepared is transaction control."""
    return not one.is_body and one.statement is not None and one.statement.control is not None


@dataclass(slots=True)
class Names:
    """One namespace. `confirmed` is what the server has acknowledged; `pending` what this segment asked for by Parse or
    Bind, `added` the names that it may have defined by PREPARE or DECLARE.
    """

    confirmed: dict[bytes, Candidates] = field(default_factory=dict)
    pending: dict[bytes, Candidates] = field(default_factory=dict)
    added: set[bytes] = field(default_factory=set)

    def find(self, name: bytes) -> Candidates | None:
        """What `name` stands for if all before it in the segment succeeds; None if it does not exist.

        If something before it fails, the server skips the message that names it, so the pending meaning suffices.
        """
        found = self.pending.get(name)
        return found if found is not None else self.confirmed.get(name)

    def is_pending(self, name: bytes) -> bool:
        """Whether this segment has defined it by Parse or Bind, and nothing else may have defined it since."""
        return name in self.pending

    def expect(self, name: bytes, meaning: Candidates) -> None:
        """The segment defines `name`; it holds once `confirm` is called."""
        self.pending[name] = meaning

    def confirm(self, name: bytes, meaning: Candidates) -> None:
        """The server acknowledged the definition; a text of the same segment may have defined it anew behind that."""
        if name in self.added:
            known = self.confirmed.get(name, ())
            meaning = (*known, *[one for one in meaning if one not in known])
        self.confirmed[name] = meaning

    def add(self, name: bytes, meaning: Prepared) -> None:
        """`name` may stand for `meaning` from now on, and may still stand for what it stood for."""
        known = self.find(name) or ()
        if meaning not in known:
            known = (*known, meaning)
        self.confirmed[name] = known
        self.pending.pop(name, None)
        self.added.add(name)

    def forget(self, name: bytes) -> None:
        """The server acknowledged that the name is gone, unless a text of the same segment defined it behind that."""
        if name not in self.added:
            self.confirmed.pop(name, None)
            self.pending.pop(name, None)

    def forget_controls(self) -> None:
        """No name stands for transaction control any more: only what SQL itself prepared may have come behind that."""
        for name, found in list(self.confirmed.items()):
            others = tuple([one for one in found if not is_control(one)])
            if others:
                self.confirmed[name] = others
            elif found:
                del self.confirmed[name]

    def begin(self) -> None:
        """Another segment is about to be examined: the server has answered the last one."""
        self.added.clear()

    def settle(self) -> None:
        """What was not confirmed was not defined."""
        self.pending.clear()

    def clear(self) -> None:
        """The server dropped every name but those that a text of the same segment may define behind that."""
        self.confirmed = {name: known for name, known in self.confirmed.items() if name in self.added}
        self.pending.clear()
