"""Facts about a statement: what it would do to which relation. Values only; says nothing about what is allowed.

Words are PostgreSQL's. A fact that could not be established is an effect of operation UNKNOWN, never an absence.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Operation(Enum):
    """What an effect does. The values are the words a ruleset uses."""

    SELECT = "select"
    INSERT = "insert"
    UPDATE = "update"
    DELETE = "delete"
    MERGE = "merge"
    TRUNCATE = "truncate"
    COPY_IN = "copy_in"
    COPY_OUT = "copy_out"
    COPY_FILE = "copy_file"
    COPY_PROGRAM = "copy_program"
    CREATE = "create"
    ALTER = "alter"
    DROP = "drop"
    GRANT = "grant"
    TRANSACTION = "transaction"
    TWO_PHASE = "two_phase"
    SET = "set"
    RESET = "reset"
    SHOW = "show"
    ROLE = "role"
    DISCARD = "discard"
    EXPLAIN = "explain"
    PREPARE = "prepare"
    EXECUTE = "execute"
    DEALLOCATE = "deallocate"
    CURSOR = "cursor"
    LOCK = "lock"
    LISTEN = "listen"
    NOTIFY = "notify"
    CALL = "call"
    DO = "do"
    MAINTENANCE = "maintenance"
    CONSTRAINTS = "constraints"
    FUNCTION = "function"
    UNKNOWN = "unknown"

    #: A member is itself only; Enum would hash its name, in Python, at every look into a table.
    __hash__ = object.__hash__


#: Operations that change rows of a named relation: the ones a rule may give `snapshot:` and a gate must see covered.
WRITE_OPERATIONS = frozenset(
    {
        Operation.INSERT,
        Operation.UPDATE,
        Operation.DELETE,
        Operation.MERGE,
        Operation.COPY_IN,
        Operation.TRUNCATE,
    }
)


class Bounded(Enum):
    """Whether a WHERE clause limits a write; `BOUNDED` also where the question does not arise."""

    NO_WHERE = "no_where"
    ALWAYS_TRUE = "always_true"
    BOUNDED = "bounded"


class Transaction(Enum):
    """Transaction control verbs, as the session must follow them."""

    BEGIN = "begin"
    COMMIT = "commit"
    ROLLBACK = "rollback"
    SAVEPOINT = "savepoint"
    RELEASE = "release"
    ROLLBACK_TO = "rollback_to"
    SET_TRANSACTION = "set_transaction"
    SET_SESSION_CHARACTERISTICS = "set_session_characteristics"


@dataclass(frozen=True, slots=True)
class Relation:
    """A relation as the text names it; `schema` is None where the search path decides."""

    schema: str | None
    name: str

    def __str__(self) -> str:
        return f"{self.schema}.{self.name}" if self.schema else self.name


@dataclass(frozen=True, slots=True)
class FunctionName:
    """A function, operator or type that would run code; `builtin` if on the allow-list of pure pg_catalog functions.

    `kind` is one of ``function``, ``operator``, ``type``. Source of the allow-list: `sqlwall.sql.functions`.
    """

    schema: str | None
    name: str
    kind: str = "function"
    arguments: int = -1

    def __str__(self) -> str:
        return f"{self.schema}.{self.name}" if self.schema else self.name


@dataclass(frozen=True, slots=True)
class Effect:
    """One thing that a statement would do.

    `relation` is what it is done to, where that is a relation; `subject` names anything else (a setting, a function,
    a savepoint, a role, an object kind); `value` is the value given to a setting, folded to text. `columns` are the
    columns written, empty if all or not applicable.
    """

    operation: Operation
    relation: Relation | None = None
    subject: str | None = None
    value: str | None = None
    columns: tuple[str, ...] = ()
    bounded: Bounded = Bounded.BOUNDED


@dataclass(frozen=True, slots=True)
class TransactionControl:
    """What a transaction statement asks for: the verb, a savepoint's name, and the options that decide its locks.

    `read_only` is None where the text does not say. `chain` is AND CHAIN.
    """

    verb: Transaction
    name: str | None = None
    read_only: bool | None = None
    chain: bool = False
    isolation: str | None = None


@dataclass(frozen=True, slots=True)
class Statement:
    """Facts about one statement of a text. `start` and `end` are byte offsets into the text.

    `tag` is the command's name for messages ("DELETE"). `effects` holds every effect, nested ones included; it is never
    empty: a query that reads no table has a SELECT effect without relation. `columns` are names of columns taken from
    something (`t.x`, `(row).x`): each may be a call of x(t). `prepared` is the name in PREPARE, DEALLOCATE and EXECUTE
    (EXPLAIN EXECUTE and CREATE TABLE AS EXECUTE included), `cursor` the name in DECLARE, FETCH, MOVE and CLOSE, `hold`
    its WITH HOLD. `names` holds every name given or used for something that is no relation: prepared statements,
    cursors, savepoints, roles, objects. `volatile` is set where code runs that is not known to only compute: a
    function, an operator, CALL or DO.
    """

    tag: str
    effects: tuple[Effect, ...]
    start: int
    end: int
    functions: tuple[FunctionName, ...] = ()
    columns: tuple[str, ...] = ()
    control: TransactionControl | None = None
    prepared: str | None = None
    cursor: str | None = None
    hold: bool = False
    names: tuple[str, ...] = ()
    volatile: bool = False


@dataclass(frozen=True, slots=True)
class Unparsable:
    """A text that PostgreSQL's grammar rejects, or that a guard refused to parse.

    `sqlstate` is 42601 for a syntax error, 54001 where a limit or the parser's own stack ended it, 22021 for bytes that
    are not UTF-8. `position` counts characters from 1, as PostgreSQL's P field does; 0 if unknown.
    """

    sqlstate: str
    message: str
    position: int = 0
