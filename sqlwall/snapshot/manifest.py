"""What a snapshot says about itself: which rows of which relations one transaction changed, and where their images are.

For every relation there are two sets of images, each row as one line of COPY text. `before` holds the committed rows
that the transaction updated or deleted, as they were; `after` the rows that it left in their place or added. Undo takes
the second away and puts the first back. Values only; `store.snapshots` keeps them.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Final

from sqlwall.errors import SnapshotError
from sqlwall.snapshot.images import quote_identifier

#: Written into every manifest; a reader refuses what it does not know. The first knew rows only,
#: the second no `Column.read_as`.
FORMAT: Final = 3
_READABLE: Final = (1, 2, 3)


@dataclass(frozen=True, slots=True)
class Column:
    """One column of an image, in the order of the fields of a line.

    `type` is what format_type says, `number` is attnum. `generated` is empty or ``s``: virtual columns have no image.
    `identity` is empty, ``a`` (always) or ``d`` (by default). `read_as` is the type of pg_catalog that images are
    read through, empty where the type's own text is exact (`images.READ_AS`).
    """

    name: str
    type: str
    number: int
    generated: str = ""
    identity: str = ""
    read_as: str = ""

    def image(self, alias: str) -> str:
        """The expression that images hold of it."""
        name = f"{alias}.{quote_identifier(self.name)}"
        return f"{name}::pg_catalog.{self.read_as}" if self.read_as else name


@dataclass(frozen=True, slots=True)
class Part:
    """One set of images. `offset`, `stored`: bytes of the blob; `size`: bytes of COPY text; `digest`: its SHA-256."""

    rows: int = 0
    offset: int = 0
    stored: int = 0
    size: int = 0
    digest: str = ""


@dataclass(frozen=True, slots=True)
class Change:
    """What happened to one table, always a leaf: partitions and children of inheritance have changes of their own.

    `inserted`, `updated` and `deleted` are the server's own counts. `key` names the columns of the primary key, empty
    without one. `proof` says how completeness was shown: ``counted`` by the cover equation, ``scanned`` by a complete
    look at the relation.
    """

    oid: int
    schema: str
    name: str
    columns: tuple[Column, ...]
    key: tuple[str, ...]
    inserted: int
    updated: int
    deleted: int
    before: Part
    after: Part
    proof: str

    @property
    def label(self) -> str:
        """The server's own name for it, as messages show it."""
        return f"{self.schema}.{self.name}"


@dataclass(frozen=True, slots=True)
class SequenceState:
    """Where a sequence stands: last_value and is_called."""

    last: int
    is_called: bool


@dataclass(frozen=True, slots=True)
class SequenceChange:
    """A sequence that a TRUNCATE restarted: where it stood before, and where the transaction left it."""

    oid: int
    schema: str
    name: str
    before: SequenceState
    after: SequenceState

    @property
    def label(self) -> str:
        """The server's own name for it, as messages show it."""
        return f"{self.schema}.{self.name}"


@dataclass(frozen=True, slots=True)
class MovedPart:
    """An index (``i``) or sequence (``S``) that goes with its table: its name at that one's place, and in the trash."""

    oid: int
    kind: str
    name: str
    trash: str


@dataclass(frozen=True, slots=True)
class KeptKey:
    """A foreign key to another table, which none in the trash has. `definition` follows its name in SQL."""

    name: str
    definition: str
    comment: str | None = None


@dataclass(frozen=True, slots=True)
class Move:
    """A table that was dropped, which is to say moved to the trash under the name `trash`; or brought back from there.

    `digest` is that of the rows of one that was brought back.
    """

    oid: int
    schema: str
    name: str
    trash: str
    columns: tuple[Column, ...]
    parts: tuple[MovedPart, ...] = ()
    keys: tuple[KeptKey, ...] = ()
    is_removed: bool = True
    digest: str = ""

    @property
    def label(self) -> str:
        """The server's own name for it, as messages show it."""
        return f"{self.schema}.{self.name}"


@dataclass(frozen=True, slots=True)
class Manifest:
    """One snapshot. `id` is a ULID, `created` UTC in ISO 8601, `xid` the transaction's xid8 in decimal.

    `system` is the cluster's system identifier and `database_oid` the database's: a snapshot belongs nowhere else.
    `statements` are the texts that wrote, cut at a bound of the wall's; `server_version` is server_version_num.
    """

    id: str
    created: str
    agent: str
    session: str
    database: str
    database_oid: int
    system: str
    server_version: int
    xid: str
    ruleset: str
    statements: tuple[str, ...] = ()
    changes: tuple[Change, ...] = field(default_factory=tuple)
    sequences: tuple[SequenceChange, ...] = ()
    moves: tuple[Move, ...] = ()

    @property
    def rows(self) -> int:
        """Rows that have an image of before, and rows that only have one of after."""
        return sum(max(change.before.rows, change.after.rows) for change in self.changes)

    @property
    def relations(self) -> list[str]:
        """The server's names of all that was changed."""
        return [
            *(change.label for change in self.changes),
            *(change.label for change in self.sequences),
            *(move.label for move in self.moves),
        ]

    def with_parts(self, copied: Callable[[Part], Part]) -> Manifest:
        """The same with its images in another place: each part is copied once, in the order of `changes`."""
        return replace(
            self,
            changes=tuple(
                replace(change, before=copied(change.before), after=copied(change.after))
                for change in self.changes
            ),
        )

    def to_json(self) -> bytes:
        """As it stands in the blob."""
        return json.dumps({"format": FORMAT, **asdict(self)}, ensure_ascii=False, sort_keys=True).encode()


def read_manifest(data: bytes) -> Manifest:
    """The manifest in these bytes. Raises SnapshotError for anything else."""
    try:
        found: dict[str, Any] = json.loads(data)
        if found.pop("format") not in _READABLE:
            raise SnapshotError("the snapshot was written by another version of sqlwall")
        found["statements"] = tuple(found["statements"])
        found["changes"] = tuple(_change(change) for change in found["changes"])
        found["sequences"] = tuple(_sequence(change) for change in found.get("sequences", ()))
        found["moves"] = tuple(_move(move) for move in found.get("moves", ()))
        return Manifest(**found)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise SnapshotError(f"the manifest of the snapshot is damaged: {error}") from error


def swapped(manifest: Manifest, **values: Any) -> Manifest:
    """The manifest of an undo: what was after is now before."""
    changes = tuple(
        replace(
            change,
            before=change.after,
            after=change.before,
            inserted=change.deleted,
            deleted=change.inserted,
        )
        for change in manifest.changes
    )
    sequences = tuple(
        replace(change, before=change.after, after=change.before) for change in manifest.sequences
    )
    moves = tuple(replace(move, is_removed=not move.is_removed) for move in manifest.moves)
    return replace(manifest, **{"changes": changes, "sequences": sequences, "moves": moves, **values})


def _change(found: dict[str, Any]) -> Change:
    return Change(
        **found
        | {
            "columns": tuple(Column(**column) for column in found["columns"]),
            "key": tuple(found["key"]),
            "before": Part(**found["before"]),
            "after": Part(**found["after"]),
        }
    )


def _sequence(found: dict[str, Any]) -> SequenceChange:
    states = {side: SequenceState(**found[side]) for side in ("before", "after")}
    return SequenceChange(**found | states)


def _move(found: dict[str, Any]) -> Move:
    return Move(
        **found
        | {
            "columns": tuple(Column(**column) for column in found["columns"]),
            "parts": tuple(MovedPart(**part) for part in found["parts"]),
            "keys": tuple(KeptKey(**key) for key in found["keys"]),
        }
    )
