"""Random scripts of writes to a random schema: every kind of statement and every way to send it. Texts only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Final

from hypothesis import strategies as st
from hypothesis.vendor.pretty import RepresentationPrinter

from tests.promises.schemas import Abilities, Chooser, Group, Schema, SchemaMaker, Target

#: Choices of an example at least; most take a few hundred.
LEAST_BYTES: Final = 400

BEGINNINGS: Final = (
    "BEGIN", "BEGIN", "START TRANSACTION", "BEGIN ISOLATION LEVEL REPEATABLE READ", "BEGIN ISOLATION LEVEL SERIALIZABLE",
)  # fmt: skip
#: What agents do between their writes.
ASIDES: Final = (
    "SET CONSTRAINTS ALL DEFERRED",
    "SET CONSTRAINTS ALL IMMEDIATE",
    "SET LOCAL datestyle = 'German'",
    "SET LOCAL extra_float_digits = -10",
    "SET LOCAL bytea_output = 'escape'",
    "SET LOCAL timezone = 'Asia/Tokyo'",
    "SELECT count(*) FROM tally",
)


class Way(Enum):
    """How statements are sent."""

    QUERY = "a Query"
    PARAMETERS = "extended, with parameters"
    BINARY = "extended, binary"
    PREPARED = "a named statement"
    EXECUTE = "PREPARE and EXECUTE"
    TOGETHER = "several in one Query"
    PIPELINE = "several up to one Sync"
    COPY = "COPY FROM STDIN"


@dataclass(frozen=True, slots=True)
class Statement:
    """A text with %s for each of its values, which are integers."""

    text: str
    values: tuple[int, ...] = ()

    def __str__(self) -> str:
        return self.text % self.values


@dataclass(frozen=True, slots=True)
class Step:
    """What is sent before an answer is waited for. `data` are lines for COPY."""

    way: Way
    statements: tuple[Statement, ...]
    data: str = ""

    def __str__(self) -> str:
        data = f" <- {self.data!r}" if self.data else ""
        return f"{'; '.join(map(str, self.statements))}{data}  -- {self.way.value}"


@dataclass(frozen=True, slots=True)
class World:
    """A schema and what an agent does to it."""

    schema: Schema
    script: tuple[Step, ...]

    def __str__(self) -> str:
        return ";\n".join([*self.schema.ddl, "-- what the agent does", *map(str, self.script)]) + "\n"

    def _repr_pretty_(self, printer: RepresentationPrinter, _is_cycle: bool) -> None:
        """How hypothesis shows it."""
        printer.text(f"{self}")


def worlds(server: Abilities) -> st.SearchStrategy[World]:
    """A schema and a script for it.

    Made of bytes and not of a strategy for each choice: hypothesis would repeat parts of what it has tried before, and
    an example is too dear for that.
    """

    def make(entropy: bytes) -> World:
        chooser = Chooser(entropy)
        schema = SchemaMaker(chooser, server).make()
        return World(schema, tuple(_Author(chooser, schema).script()))

    return st.binary(min_size=LEAST_BYTES, max_size=5 * LEAST_BYTES).map(make)


class _Author:
    """Makes one script of choices."""

    def __init__(self, chooser: Chooser, schema: Schema) -> None:
        self._number, self._chance, self._one = chooser.number, chooser.chance, chooser.one
        self._targets = schema.targets
        self._cursors = 0

    def script(self) -> list[Step]:
        steps: list[Step] = []
        for _ in range(self._number(3, 6)):
            steps += self._block() if self._chance(2) else [self._step()]
        return steps

    # -- transactions

    def _block(self) -> list[Step]:
        steps = [_query(self._one(BEGINNINGS))]
        savepoints = ["a"] if self._chance(2) else []  # so that an error is not the end of most blocks
        steps += [_query(f"SAVEPOINT {name}") for name in savepoints]
        for _ in range(self._number(2, 7)):
            choice = self._number(0, 9)
            if choice < 5:
                steps.append(self._step())
            elif choice == 5:
                steps += self._cursor()
            elif choice == 6:
                steps.append(_query(self._one(ASIDES)))
            elif choice == 7 or not savepoints:
                savepoints.append(self._one(("a", "b")))
                steps.append(_query(f"SAVEPOINT {savepoints[-1]}"))
            else:
                name = self._one(savepoints)
                place = len(savepoints) - 1 - savepoints[::-1].index(name)
                del savepoints[place + (choice == 8) :]
                steps.append(_query(f"ROLLBACK TO {name}" if choice == 8 else f"RELEASE {name}"))
        return [*steps, _query(self._one(("COMMIT", "COMMIT", "COMMIT", "END", "ROLLBACK")))]

    def _step(self) -> Step:
        way = self._one(tuple(Way))
        if way is Way.COPY:
            tables = [target for target in self._targets if not target.is_view and not target.given]
            if tables:
                return self._copy(self._one(tables))
            way = Way.QUERY
        several = way in (Way.TOGETHER, Way.PIPELINE)
        return Step(way, tuple(self._write() for _ in range(self._number(1, 3) if several else 1)))

    def _cursor(self) -> list[Step]:
        target = self._one([target for target in self._targets if not target.is_view])
        self._cursors += 1
        name = f"c{self._cursors}"
        change = self._one((f"UPDATE {target.name} SET n = n + 1", f"DELETE FROM {target.name}"))
        lines = [
            f"DECLARE {name} CURSOR FOR SELECT n FROM {target.name} WHERE n < 6 FOR UPDATE",
            f"FETCH {self._number(1, 2)} FROM {name}",
            f"{change} WHERE CURRENT OF {name}",
        ]
        return [_query(line) for line in lines]

    def _copy(self, target: Target) -> Step:
        columns = [*(target.key.columns if target.key else ()), "n"]
        lines: list[str] = []
        for _ in range(self._number(1, 3)):
            key = self._one(target.key.choices[4:]) if target.key else ()
            lines.append("\t".join([*(value.strip("'") for value in key), str(self._number(0, 9))]) + "\n")
        head = Statement(f"COPY {target.name} ({', '.join(columns)}) FROM STDIN")
        return Step(Way.COPY, (head,), "".join(lines))

    # -- statements

    def _write(self) -> Statement:
        target = self._one(self._targets)
        choice = self._number(0, 11)
        if choice < 4:
            return self._update(target)
        if choice < 6:
            return self._delete(target)
        if choice < 8:
            return self._insert(target)
        if choice == 8 and not target.has_rules and not target.is_view:
            return self._upsert(target)
        if choice == 9 and not target.has_rules and not target.is_view:
            return self._merge(target)
        if choice == 10:
            return self._nested()
        return self._joined(target)

    def _update(self, target: Target) -> Statement:
        change, values = self._change(target)
        where, more = self._where(target)
        end = self._one(("", "", " RETURNING n")) if not target.has_rules else ""
        return Statement(f"UPDATE {target.name} AS x SET {change} WHERE {where}{end}", (*values, *more))

    def _delete(self, target: Target) -> Statement:
        where, values = self._where(target)
        end = self._one(("", "", " RETURNING n")) if not target.has_rules else ""
        return Statement(f"DELETE FROM {target.name} AS x WHERE {where}{end}", values)

    def _insert(self, target: Target) -> Statement:
        choice = self._number(0, 4)
        if choice == 0 and not target.is_view and not target.needs_key:
            return Statement(f"INSERT INTO {target.name} DEFAULT VALUES")
        if choice == 1 and target.takes_computed_keys and target.key is not None:
            source = self._one(self._targets)
            key = target.key.columns[0]
            return Statement(
                f"INSERT INTO {target.name} ({key}, n) OVERRIDING SYSTEM VALUE"
                f" SELECT row_number() OVER () + %s, n FROM {source.name} LIMIT 5",
                (self._number(10, 30),),
            )
        text, values = self._rows(target)
        end = self._one(("", "", " RETURNING n")) if not target.has_rules else ""
        return Statement(f"INSERT INTO {target.name} {text}{end}", values)

    def _rows(self, target: Target) -> tuple[str, tuple[int, ...]]:
        """The columns and VALUES of an INSERT."""
        groups: list[Group] = (
            [target.key] if target.key is not None and not (target.given and self._chance(2)) else []
        )
        groups += [group for group in target.groups if self._chance(2)]
        columns = [column for group in groups for column in group.columns]
        rows: list[str] = []
        values: list[int] = []
        for _ in range(self._number(1, 3)):
            row = [
                text
                for group in groups
                for text in self._one(group.choices[4 if group is target.key else 0 :])
            ]
            rows.append(f"({', '.join([*row, '%s'])})")
            values.append(self._number(0, 9))
        over = " OVERRIDING SYSTEM VALUE" if target.given and target.key in groups else ""
        return f"({', '.join([*columns, 'n'])}){over} VALUES {', '.join(rows)}", tuple(values)

    def _upsert(self, target: Target) -> Statement:
        text, values = self._rows(target)
        key = f"({', '.join(target.key.columns)})" if target.key is not None else ""
        conflict = "DO NOTHING"
        if key and not self._chance(3):
            change = self._one(("n = excluded.n", "n = x.n + 1", "n = excluded.n WHERE x.n < 4"))
            conflict = f"{key} DO UPDATE SET {change}"
        return Statement(f"INSERT INTO {target.name} AS x {text} ON CONFLICT {conflict}", values)

    def _merge(self, target: Target) -> Statement:
        if target.key is None or len(target.key.columns) > 1:
            source, on, key = "(VALUES (%s, 0), (%s, 1))", "x.n = s.n", ""
        else:
            one, two = self._one(target.key.choices)[0], self._one(target.key.choices)[0]
            (key,) = target.key.columns
            source, on = f"(VALUES (%s, {one}), (%s, {two}))", f"x.{key} = s.k"
        matched = self._one(("UPDATE SET n = s.n + 1", "DELETE", "DO NOTHING"))
        columns, row = (f"({key}, n)", "(s.k, s.n)") if key else ("(n)", "(s.n)")
        over = " OVERRIDING SYSTEM VALUE" if target.given else ""
        otherwise = self._one((f"INSERT {columns}{over} VALUES {row}", "DO NOTHING"))
        return Statement(
            f"MERGE INTO {target.name} AS x USING {source} AS s (n, k) ON {on}"
            f" WHEN MATCHED AND x.n < 5 THEN {matched} WHEN MATCHED THEN UPDATE SET n = 0"
            f" WHEN NOT MATCHED THEN {otherwise}",
            (self._number(0, 9), self._number(0, 9)),
        )

    def _nested(self) -> Statement:
        """Two or three writes in one statement."""
        targets = [target for target in self._targets if not target.has_rules]
        if not targets:
            return self._update(self._targets[0])
        parts = [self._simple(self._one(targets)) for _ in range(self._number(1, 2))]
        last = self._one((self._simple(self._one(targets)), Statement("SELECT count(*) FROM w0")))
        heads = ", ".join(f"w{place} AS ({part.text} RETURNING 1)" for place, part in enumerate(parts))
        return Statement(
            f"WITH {heads} {last.text}", tuple(value for part in (*parts, last) for value in part.values)
        )

    def _simple(self, target: Target) -> Statement:
        where, values = self._where(target)
        changes = (
            Statement(f"UPDATE {target.name} AS x SET n = x.n + 1 WHERE {where}", values),
            Statement(f"DELETE FROM {target.name} AS x WHERE {where}", values),
            Statement(f"INSERT INTO {target.name} (n) VALUES (%s)", (self._number(0, 9),)),
        )
        return self._one(changes[:2] if target.needs_key or target.is_view else changes)

    def _joined(self, target: Target) -> Statement:
        """With rows of another relation."""
        other = self._one(self._targets)
        values = (self._number(0, 5),)
        return self._one(
            (
                Statement(
                    f"UPDATE {target.name} AS x SET n = y.n FROM {other.name} AS y WHERE x.n = y.n + %s",
                    values,
                ),
                Statement(
                    f"DELETE FROM {target.name} AS x USING {other.name} AS y WHERE x.n = y.n AND y.n > %s",
                    values,
                ),
                Statement(
                    f"UPDATE {target.name} AS x SET n = (SELECT max(y.n) FROM {other.name} AS y) WHERE x.n < %s",
                    values,
                ),
                Statement(
                    f"DELETE FROM {target.name} AS x WHERE EXISTS"
                    f" (SELECT FROM {other.name} AS y WHERE y.n = x.n AND y.n < %s)",
                    values,
                ),
            )
        )

    def _change(self, target: Target) -> tuple[str, tuple[int, ...]]:
        """What SET says."""
        choice = self._number(0, 6)
        if choice < 2:
            return "n = %s", (self._number(0, 9),)
        if choice == 2:
            return self._one(("n = x.n + 1", "n = 5 - x.n", "n = x.n", "n = NULL", "n = DEFAULT")), ()
        if choice == 3 and target.takes_computed_keys and target.key is not None and not target.given:
            (key,) = target.key.columns
            return self._one((f"{key} = x.{key} + 20", f"{key} = 6 - x.{key}", f"{key} = x.{key} + 1")), ()
        if choice == 4 and target.key is not None and not target.given:
            return _assign(target.key.columns, self._one(target.key.choices)), ()
        if target.groups:
            group = self._one(target.groups)
            return _assign(group.columns, self._one(group.choices)), ()
        return "n = x.n + %s", (self._number(1, 2),)

    def _where(self, target: Target) -> tuple[str, tuple[int, ...]]:
        """A condition on x."""
        choice = self._number(0, 9)
        if choice < 3:
            return self._one(("x.n < %s", "x.n = %s", "x.n > %s")), (self._number(0, 6),)
        if choice < 5 and target.key is not None:
            key, values = target.key.columns, self._one(target.key.choices)
            return " AND ".join(f"x.{name} = {value}" for name, value in zip(key, values, strict=True)), ()
        if choice == 5 and not target.is_view:
            return f"x.ctid IN (SELECT ctid FROM {target.name} ORDER BY random() LIMIT %s)", (
                self._number(1, 3),
            )
        if choice == 6:
            return "(x.n = %s OR random() < 0.5)", (self._number(0, 5),)
        if choice == 7:
            other = self._one(self._targets)
            return f"x.n IN (SELECT n FROM {other.name} WHERE n > %s)", (self._number(0, 3),)
        return self._one(("x.n IS NULL OR x.n < %s", "x.n IN (%s, 7)", "mod(x.n, 2) = 0 AND x.n < %s")), (
            self._number(0, 8),
        )


def _query(text: str) -> Step:
    return Step(Way.QUERY, (Statement(text),))


def _assign(columns: Sequence[str], values: Sequence[str]) -> str:
    return ", ".join(f"{column} = {value}" for column, value in zip(columns, values, strict=True))
