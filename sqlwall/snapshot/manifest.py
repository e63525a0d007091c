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

#: Written into every manifest; a reader refuses what it does not know.
FORMAT: Final = 1


@dataclass(frozen=True, slots=True)
class Column:
    """One column of an image, in the order of the fields of a line.

    `type` is what format_type says, `number` is attnum. `generated` is empty or ``s``: virtual columns have no image.
    `identity` is empty, ``a`` (always) or ``d`` (by default).
    """

    name: str
    type: str
    number: int
    generated: str = ""
    identity: str = ""


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

    @property
    def rows(self) -> int:
        """Rows that have an image of before, and rows that only have one of after."""
        return sum(max(change.before.rows, change.after.rows) for change in self.changes)

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
        if found.pop("format") != FORMAT:
            raise SnapshotError("the snapshot was written by another version of sqlwall")
        found["statements"] = tuple(found["statements"])
        found["changes"] = tuple(_change(change) for change in found["changes"])
        return Manifest(**found)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise SnapshotError(f"the manifest of the snapshot is damaged: {error}") from error


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
