"""Random schemas: tables of every shape that PostgreSQL has, with rows in them. Texts only, nothing is run here.

Values are few and small, so that keys collide, foreign keys find their rows, and predicates hit something.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Final, TypeVar

T = TypeVar("T")

#: Literals of each type, such as restore only where every bit is kept. NULL is added to all.
TYPES: Final[dict[str, tuple[str, ...]]] = {
    "smallint": ("0", "-32768"),
    "bigint": ("9223372036854775807", "-1"),
    "numeric": ("1.0", "1.00", "'NaN'", "-0.000", "1e30"),
    "numeric(6,2)": ("1", "-9999.99"),
    "float8": ("'-0'", "0.1::float8 + 0.2", "'NaN'", "5e-324", "'-Infinity'"),
    "float4": ("'-0'", "0.1", "16777217"),
    "text": ("''", "E'tab\\there\\nand\\\\there\\r'", "E'\\\\N'", "E'\\\\.'", "'naïve ☃'", "' padded '", "repeat('wall', 3000)",
             "(SELECT string_agg(md5(g::text), '') FROM generate_series(1, 150) g)"),
    "varchar(5)": ("'abc'", "'a    '"),
    "char(4)": ("'a'", "''"),
    "bool": ("true", "false"),
    "date": ("'infinity'", "'0044-03-15 BC'", "'2024-02-29'"),
    "time": ("'24:00'", "'00:00:00.000001'"),
    "timetz": ("'12:00+02'", "'12:00-15:59'"),
    "timestamp": ("'-infinity'", "'2026-01-31 12:00:00.123456'"),
    "timestamptz": ("'2026-01-31 12:00+02'", "'294276-12-31 23:59+00'"),
    "interval": ("'1 mon -3 days'", "'-00:00:01'", "'1 year 2 mons'"),
    "uuid": ("'00000000-0000-0000-0000-000000000000'", "'ffffffff-ffff-ffff-ffff-ffffffffffff'"),
    "bytea": ("''", "'\\x00ff5c'"),
    "json": ("'{\"b\":1,  \"a\":2, \"a\":3}'", "'null'", "'[1, 1.0]'"),
    "jsonb": ("'{\"b\": 1.0, \"a\": \"\\u263a\"}'", "'null'"),
    "int[]": ("'{1,NULL,3}'", "'[0:2]={1,2,3}'", "'{}'", "'{{1,2},{3,4}}'"),
    "text[]": ("'{\"a b\",NULL,\"NULL\",\"\\\"\"}'", "'{}'"),
    "int4range": ("'[1,5)'", "'empty'", "'(,)'"),
    "int4multirange": ("'{[1,3),[5,7)}'", "'{}'"),
    "tstzrange": ("'[2026-01-01,)'",),
    "inet": ("'10.0.0.1/8'", "'::1'"),
    "macaddr": ("'08:00:2b:01:02:03'",),
    "bit(3)": ("B'101'",),
    "varbit": ("B''", "B'10011'"),
    "money": ("'12.34'", "'-0.01'"),
    "xml": ("'<a>1</a>'", "'text'", "'<?xml version=\"1.0\" encoding=\"UTF-8\"?><a/>'"),
    "xml[]": ("ARRAY['<?xml version=\"1.0\"?><a/>'::xml, NULL]",),
    "tsvector": ("'fat:2,4 cat:3A'",),
    "tsquery": ("'fat & (rat | !cat)'",),
    "point": ("'(1,-0)'", "'(NaN,1)'"),
    "path": ("'[(0,0),(1,1)]'", "'((0,0),(1,1))'"),
    "oid": ("4294967295",),
    "regclass": ("'pg_class'", "'public.log'"),
    "regtype": ("'int4'",),
    "regproc": ("'pg_catalog.now'", "1397"),
    "regproc[]": ("ARRAY[1397, 0]::regproc[]",),
    '"char"': ("'x'", "''"),
    "name": ("'a name'",),
    "pg_lsn": ("'16/B374D848'",),
    "xid8": ("'18446744073709551615'",),
    "jsonpath": ("'$.a[*] ? (@ > 1)'",),
    "mood": ("'sad'", "'ok'"),
    "pair": ("'(1,\"x y\")'", "'(,)'"),
    "pair[]": ("'{\"(1,a)\",NULL}'",),
    "small": ("1", "999"),
}  # fmt: skip

#: What every schema has: types of its own, and tables that triggers write to.
COMMON: Final = (
    "CREATE TYPE mood AS ENUM ('sad', 'ok')",
    "CREATE TYPE pair AS (a int, b text)",
    "CREATE DOMAIN small AS int CHECK (VALUE < 1000)",
    "CREATE TABLE log (what text, n int)",
    "CREATE TABLE tally (id int PRIMARY KEY, c int)",
    "INSERT INTO tally VALUES (1, 0), (2, 0)",
)

KEY_VALUES: Final[dict[str, tuple[str, ...]]] = {
    "int": tuple(str(number) for number in range(14)),
    "numeric": tuple(f"{number}{'.0' * (number % 2)}" for number in range(14)),
    "text": tuple(f"'k{number}'" for number in range(14)),
}

#: Bodies of trigger functions, by when they fire. A second table is {other}.
BEFORE: Final = {
    "adjust": "IF TG_OP <> 'DELETE' THEN NEW.n := mod(NEW.n + 1, 50); RETURN NEW; END IF; RETURN OLD;",
    "skip": "IF coalesce(NEW.n, OLD.n) = 2 THEN RETURN NULL; END IF;"
    " IF TG_OP = 'DELETE' THEN RETURN OLD; END IF; RETURN NEW;",
    "early": "INSERT INTO log VALUES ('early', OLD.n); IF TG_OP = 'DELETE' THEN RETURN OLD; END IF; RETURN NEW;",
    "neighbour": "DELETE FROM {other} WHERE n = OLD.n + 1;"
    " IF TG_OP = 'DELETE' THEN RETURN OLD; END IF; RETURN NEW;",
}
AFTER: Final = {
    "note": "INSERT INTO log VALUES (TG_OP, coalesce(NEW.n, OLD.n)); RETURN NULL;",
    "tally": "UPDATE tally SET c = c + 1 WHERE id = 1; UPDATE tally SET c = c + 1 WHERE id < 3; RETURN NULL;",
    "again": "IF pg_trigger_depth() < 2 THEN UPDATE {own} SET n = n + 1 WHERE n = NEW.n; END IF; RETURN NULL;",
    "spread": "IF pg_trigger_depth() < 3 THEN UPDATE {other} SET n = n + 1 WHERE n = OLD.n; END IF; RETURN NULL;",
    "purge": "IF pg_trigger_depth() < 3 THEN DELETE FROM {other} WHERE n = OLD.n; END IF; RETURN NULL;",
    "fade": "INSERT INTO log VALUES ('fades', 1); DELETE FROM log WHERE what = 'fades'; RETURN NULL;",
    "caught": "BEGIN INSERT INTO log VALUES ('lost', 1); DELETE FROM {other} WHERE n < 3; PERFORM 1 / 0;"
    " EXCEPTION WHEN division_by_zero THEN INSERT INTO log VALUES ('caught', NEW.n); END; RETURN NULL;",
    "swallowed": "BEGIN DELETE FROM {other} WHERE n < 3; RAISE EXCEPTION 'x'; EXCEPTION WHEN raise_exception THEN NULL;"
    " END; RETURN NULL;",
}
ACTIONS: Final = ("NO ACTION", "RESTRICT", "CASCADE", "SET NULL", "SET DEFAULT")
DEFERRING: Final = ("", "", "DEFERRABLE INITIALLY IMMEDIATE", "DEFERRABLE INITIALLY DEFERRED")


@dataclass(frozen=True, slots=True)
class Abilities:
    """What the server can do: its major version, and whether it was built with libxml."""

    major: int
    has_xml: bool


@dataclass(frozen=True, slots=True)
class Group:
    """Columns that are set together, and literals that fit them."""

    columns: tuple[str, ...]
    choices: tuple[tuple[str, ...], ...]


@dataclass(frozen=True, slots=True)
class Target:
    """A table or view that statements may write. All have a column n of type int.

    `given` says that the key's value comes from the table (GENERATED ALWAYS AS IDENTITY), `needs_key` that a row has to
    bring its own.
    """

    name: str
    key: Group | None
    groups: tuple[Group, ...]
    is_view: bool = False
    has_rules: bool = False
    given: bool = False
    needs_key: bool = False
    takes_computed_keys: bool = False
    is_unique: bool = False


@dataclass(frozen=True, slots=True)
class Schema:
    """Statements that make it, for a superuser, and what there is to be written."""

    ddl: tuple[str, ...]
    targets: tuple[Target, ...]


class Chooser:
    """Choices out of random bytes; once these are used up, always the first: so shorter and smaller is simpler."""

    def __init__(self, entropy: bytes) -> None:
        self._entropy = iter(entropy)

    def number(self, least: int, most: int) -> int:
        """One of these numbers, both ends included."""
        return least + next(self._entropy, 0) % (most - least + 1)

    def chance(self, of: int) -> bool:
        """True once in so many times."""
        return self.number(1, of) == of

    def one(self, options: Sequence[T]) -> T:
        """One of these."""
        return options[self.number(0, len(options) - 1)]


@dataclass(slots=True)
class _Table:
    """A table while it is made. Rows go in before its constraints, triggers and policies are there."""

    number: int
    name: str
    key_type: str
    key: tuple[str, ...]
    key_clause: str
    rows: int
    by: str  # what it is partitioned by; empty if it is not
    values: tuple[tuple[str, str], ...]
    is_unique: bool
    has_heir: bool
    has_rules: bool
    parents: list[tuple[_Table, tuple[str, ...]]] = field(default_factory=list)

    @property
    def given(self) -> bool:
        return "ALWAYS" in self.key_clause

    def key_of(self, row: int) -> tuple[str, ...]:
        """The literals of a row's key."""
        values = KEY_VALUES[self.key_type]
        return (values[row],) if len(self.key) == 1 else (values[row // 3], values[row % 3])

    def key_group(self) -> Group | None:
        return Group(self.key, tuple(self.key_of(row) for row in range(12))) if self.key else None

    def columns(self) -> tuple[str, ...]:
        """All that may be written, in no order that the table keeps."""
        found = [*self.key, "n", *(name for name, _ in self.values)]
        return (*found, *(column for _, columns in self.parents for column in columns))

    def groups(self) -> tuple[Group, ...]:
        groups = [
            Group((name,), tuple((text,) for text in ("NULL", *TYPES[kind]))) for name, kind in self.values
        ]
        for parent, columns in self.parents:
            found = parent.key_group()
            assert found is not None
            groups.append(Group(columns, (("NULL",) * len(columns), *found.choices[:8])))
        return tuple(groups)

    def target(self) -> Target:
        return Target(
            self.name,
            self.key_group(),
            self.groups(),
            has_rules=self.has_rules,
            given=self.given,
            needs_key=bool(self.key) and not self.key_clause,
            takes_computed_keys=len(self.key) == 1 and self.key_type != "text",
            is_unique=self.is_unique,
        )


class SchemaMaker:
    """Makes one schema of choices."""

    def __init__(self, chooser: Chooser, server: Abilities) -> None:
        self._number, self._chance, self._one = chooser.number, chooser.chance, chooser.one
        self._types = tuple(kind for kind in TYPES if not kind.startswith("xml") or server.has_xml)
        self._major = server.major
        self._ddl: list[str] = list(COMMON)

    def make(self) -> Schema:
        tables = [self._shape(number) for number in range(self._number(1, 4))]
        keyed = [table for table in tables if table.key]
        for table in tables if keyed else ():
            for place in range(self._number(0, 2)):
                parent = self._one(keyed)
                columns = tuple(f"f{place}{letter}" for letter, _ in zip("ab", parent.key, strict=False))
                table.parents.append((parent, columns))
        for table in tables:
            self._create(table)
        for table in tables:
            self._fill(table)
        for table in tables:
            self._constrain(table)
        for number in range(self._number(0, 4)):
            self._trigger(number, self._one(tables), self._one(tables))
        views = [self._view(number, self._one(tables)) for number in range(self._number(0, 2))]
        for table in tables:
            self._secure(table)
        self._ddl.append("GRANT ALL ON ALL TABLES IN SCHEMA public TO {app}")
        self._ddl.append("GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO {app}")
        if self._chance(8):
            self._ddl.append("REVOKE SELECT ON log FROM {app}")
        return Schema(tuple(self._ddl), (*(table.target() for table in tables), *views))

    # -- tables

    def _shape(self, number: int) -> _Table:
        key_type = self._one(("int", "int", "int", "numeric", "text"))
        key = ("k", "k2")[: self._one((1, 1, 1, 0, 0, 2))]
        is_parted = self._chance(4) and (key_type != "text" or not key)
        clause = ""
        if len(key) == 1 and key_type != "text":
            identities = (
                "GENERATED ALWAYS AS IDENTITY (START 50)",
                "GENERATED BY DEFAULT AS IDENTITY (START 50)",
            )
            drawn = f"DEFAULT nextval('public.s{number}')"
            clause = self._one(("", "", drawn, *(() if is_parted or key_type != "int" else identities)))
        return _Table(
            number,
            self._one((f"t{number}", f"t{number}", f'"Odd \'{number}"', f'"a""b.{number}"')),
            key_type,
            key,
            clause,
            rows=self._one((5, 4, 6, 7, 3, 2, 0)),
            by=("n" if not key else key[-1]) if is_parted else "",
            values=tuple((f"v{place}", self._one(self._types)) for place in range(self._number(0, 3))),
            is_unique=not is_parted and self._chance(4),
            has_heir=not is_parted and self._chance(6),
            has_rules=self._chance(8),
        )

    def _create(self, table: _Table) -> None:
        columns = [f"{name} {table.key_type} {table.key_clause}".rstrip() for name in table.key]
        columns.append(f"n int{self._one(('', ' DEFAULT 4'))}")
        columns += [f"{name} {kind}" for name, kind in table.values]
        for parent, named in table.parents:
            columns += [
                f"{name} {parent.key_type} DEFAULT {text}"
                for name, text in zip(named, parent.key_of(0), strict=True)
            ]
        has_gone = self._chance(4)
        if has_gone:
            columns.insert(self._number(0, len(columns)), "gone text DEFAULT 'dropped'")
        if self._chance(4):
            columns.append("g int GENERATED ALWAYS AS (n * 2) STORED")
        if self._major >= 18 and self._chance(4):
            columns.append("w int GENERATED ALWAYS AS (n * 3) VIRTUAL")
        if table.key:
            columns.append(f"PRIMARY KEY ({', '.join(table.key)})")
        if "nextval" in table.key_clause:
            self._ddl.append(f"CREATE SEQUENCE s{table.number} START 50")
        self._ddl.append(f"CREATE TABLE {table.name} ({', '.join(columns)})")
        if table.by:
            self._partition(table)
        if table.has_heir:
            self._ddl.append(
                f"CREATE TABLE heir{table.number} (leaf text DEFAULT 'green') INHERITS ({table.name})"
            )
        if has_gone:
            self._ddl.append(f"ALTER TABLE {table.name} DROP COLUMN gone")

    def _partition(self, table: _Table) -> None:
        ways = {
            "RANGE": ("FROM (MINVALUE) TO (3)", "FROM (3) TO (MAXVALUE)"),
            "LIST": ("IN (0, 1, 2)", "DEFAULT"),
            "HASH": ("WITH (MODULUS 2, REMAINDER 0)", "WITH (MODULUS 2, REMAINDER 1)"),
        }
        way = self._one(tuple(ways))
        self._ddl[-1] += f" PARTITION BY {way} ({table.by})"
        for place, bounds in enumerate(ways[way]):
            name = f"part{table.number}_{place}"
            values = bounds if bounds == "DEFAULT" else f"FOR VALUES {bounds}"
            if place and self._chance(3):
                self._ddl.append(
                    f"CREATE TABLE {name} PARTITION OF {table.name} {values} PARTITION BY HASH ({table.by})"
                )
                self._ddl += [
                    f"CREATE TABLE {name}_{rest} PARTITION OF {name} FOR VALUES WITH (MODULUS 2, REMAINDER {rest})"
                    for rest in (0, 1)
                ]
            elif self._chance(2):
                self._ddl.append(
                    f"CREATE TABLE {name} (shifts int, LIKE {table.name} INCLUDING ALL EXCLUDING INDEXES)"
                )
                self._ddl.append(f"ALTER TABLE {name} DROP COLUMN shifts")
                self._ddl.append(f"ALTER TABLE {table.name} ATTACH PARTITION {name} {values}")
            else:
                self._ddl.append(f"CREATE TABLE {name} PARTITION OF {table.name} {values}")

    def _fill(self, table: _Table) -> None:
        columns = table.columns()
        rows = [self._row(table, row) for row in range(table.rows)]
        if rows:
            self._ddl.append(
                f"INSERT INTO {table.name} ({', '.join(columns)}) OVERRIDING SYSTEM VALUE VALUES {', '.join(rows)}"
            )
        if table.has_heir:
            row = self._row(table, 9)
            self._ddl.append(f"INSERT INTO heir{table.number} ({', '.join(columns)}) VALUES {row}")

    def _row(self, table: _Table, row: int) -> str:
        """A row that no constraint will find fault with."""
        values = [*(table.key_of(row) if table.key else ())]
        numbers = ("0", "1", "2", "3", "4", "5", *(() if table.by == "n" else ("NULL",)))
        values.append(str(row) if table.is_unique else self._one(numbers))
        values += [self._one(("NULL", *TYPES[kind])) for _, kind in table.values]
        for parent, columns in table.parents:
            chosen = self._number(-1, parent.rows - 1)
            values += parent.key_of(chosen) if chosen >= 0 else ("NULL",) * len(columns)
        return f"({', '.join(values)})"

    # -- what acts on them

    def _constrain(self, table: _Table) -> None:
        for place, (parent, columns) in enumerate(table.parents):
            on_delete, on_update = self._one(ACTIONS), self._one(ACTIONS)
            if on_delete == "SET NULL" and len(columns) > 1 and self._chance(2):
                on_delete += f" ({columns[0]})"
            match = " MATCH FULL" if self._chance(4) else ""
            self._ddl.append(
                f"ALTER TABLE {table.name} ADD CONSTRAINT fk{table.number}_{place} FOREIGN KEY ({', '.join(columns)})"
                f" REFERENCES {parent.name} ({', '.join(parent.key)}){match} ON DELETE {on_delete}"
                f" ON UPDATE {on_update} {self._one(DEFERRING)}"
            )
        if table.is_unique:
            distinct = self._one(("", " NULLS NOT DISTINCT"))
            late = "" if distinct else self._one(DEFERRING)
            self._ddl.append(
                self._one(
                    (
                        f"ALTER TABLE {table.name} ADD CONSTRAINT u{table.number} UNIQUE{distinct} (n) {late}",
                        f"CREATE UNIQUE INDEX ON {table.name} ((n + 1)) WHERE n > 2",
                        f"ALTER TABLE {table.name} ADD EXCLUDE USING gist (int4range(n, n + 1) WITH &&)",
                    )
                )
            )
        if self._chance(6):
            self._ddl.append(f"ALTER TABLE {table.name} ADD CHECK (n < 40)")
        if table.has_rules:
            self._ddl.append(
                self._one(
                    (
                        f"CREATE RULE also AS ON DELETE TO {table.name} DO ALSO INSERT INTO log VALUES ('rule', OLD.n)",
                        f"CREATE RULE also AS ON UPDATE TO {table.name} DO ALSO UPDATE tally SET c = c + 1 WHERE id = 1",
                        f"CREATE RULE also AS ON INSERT TO {table.name} DO ALSO INSERT INTO log VALUES ('rule', NEW.n)",
                    )
                )
            )

    def _trigger(self, number: int, table: _Table, other: _Table) -> None:
        kind = self._one((*AFTER, *BEFORE, "gone"))
        if kind == "skip" and table.parents:
            kind = "adjust"  # it would skip what a foreign key does, and leave rows that refer to nothing
        body = {**AFTER, **BEFORE, "gone": "INSERT INTO log SELECT 'gone', n FROM gone; RETURN NULL;"}[kind]
        self._ddl.append(
            f"CREATE FUNCTION act{number}() RETURNS trigger LANGUAGE plpgsql{self._one(('', ' SECURITY DEFINER'))} AS"
            f" $$ BEGIN {body.replace('{other}', other.name).replace('{own}', table.name)} END $$"
        )
        run = f"EXECUTE FUNCTION act{number}()"
        if kind == "gone":
            when = self._one(("DELETE", "UPDATE"))
            self._ddl.append(
                f"CREATE TRIGGER act{number} AFTER {when} ON {table.name} REFERENCING OLD TABLE AS gone"
                f" FOR EACH STATEMENT {run}"
            )
            return
        event = self._one(("INSERT OR UPDATE OR DELETE", "UPDATE", "DELETE", "INSERT", "UPDATE OR DELETE"))
        if kind in BEFORE:
            self._ddl.append(f"CREATE TRIGGER act{number} BEFORE {event} ON {table.name} FOR EACH ROW {run}")
        elif self._chance(3):
            self._ddl.append(
                f"CREATE CONSTRAINT TRIGGER act{number} AFTER {event} ON {table.name} DEFERRABLE INITIALLY DEFERRED"
                f" FOR EACH ROW {run}"
            )
        else:
            self._ddl.append(f"CREATE TRIGGER act{number} AFTER {event} ON {table.name} FOR EACH ROW {run}")

    def _view(self, number: int, table: _Table) -> Target:
        name, columns = f"seen{number}", ", ".join(table.columns())
        kind = self._one(("plain", "checked", "instead", "rules"))
        end = {"plain": " WHERE n < 8", "checked": " WHERE n < 8 WITH CHECK OPTION"}.get(kind, " OFFSET 0")
        self._ddl.append(f"CREATE VIEW {name} AS SELECT {columns} FROM {table.name}{end}")
        if kind == "instead":
            self._ddl.append(
                f"CREATE FUNCTION through{number}() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
                f" IF TG_OP = 'DELETE' THEN DELETE FROM {table.name} WHERE n = OLD.n; RETURN OLD;"
                f" ELSIF TG_OP = 'UPDATE' THEN UPDATE {table.name} SET n = NEW.n WHERE n = OLD.n; RETURN NEW; END IF;"
                " INSERT INTO log VALUES ('view', NEW.n); RETURN NEW; END $$"
            )
            self._ddl.append(
                f"CREATE TRIGGER through INSTEAD OF INSERT OR UPDATE OR DELETE ON {name} FOR EACH ROW"
                f" EXECUTE FUNCTION through{number}()"
            )
        if kind == "rules":
            self._ddl += [
                f"CREATE RULE d AS ON DELETE TO {name} DO INSTEAD DELETE FROM {table.name} WHERE n = OLD.n",
                f"CREATE RULE u AS ON UPDATE TO {name} DO INSTEAD"
                f" (UPDATE {table.name} SET n = NEW.n WHERE n = OLD.n; INSERT INTO log VALUES ('rule', NEW.n))",
                f"CREATE RULE i AS ON INSERT TO {name} DO INSTEAD NOTHING",
            ]
        return replace(table.target(), name=name, is_view=True, has_rules=kind == "rules", is_unique=False)

    def _secure(self, table: _Table) -> None:
        """Row security, which binds the agent's role."""
        if not self._chance(8):
            return
        self._ddl.append(f"ALTER TABLE {table.name} ENABLE ROW LEVEL SECURITY")
        self._ddl.append(
            f"CREATE POLICY most ON {table.name} USING (n IS DISTINCT FROM 3){self._one(('', ' WITH CHECK (true)'))}"
        )
        if self._chance(2):
            self._ddl.append(f"CREATE POLICY gone ON {table.name} FOR DELETE USING (n = 3)")
