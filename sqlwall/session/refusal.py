"""The ErrorResponses that sqlwall itself raises, and the poison that makes the server raise them in place.

Everything a client reads from sqlwall is worded here. The first line stands alone, because several drivers show nothing
else: what was refused, by which rule, whether anything ran, whether to retry (DESIGN: promise 8, decision 10).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from sqlwall.rules.verdict import Verdict
from sqlwall.sql.statement import Unparsable
from sqlwall.wire import sqlstate
from sqlwall.wire.backend import error_response, notice_response

#: The first line's bound: what agents read must not be a way to echo a text back at length.
FIRST_LINE_LIMIT = 300

#: Prepared statements, portals and savepoints of this prefix are sqlwall's; an agent may not name its own so.
RESERVED_PREFIX = "_sqlwall"

#: The rule under which what an agent sends too fast is refused.
RATE_RULE = "rate-limit"

_NOTHING = "Nothing was executed. Do not retry unchanged."


@dataclass(frozen=True, slots=True)
class Refusal:
    """An error for the client: SQLSTATE and the fields PostgreSQL's ErrorResponse knows. `rule` goes into `n`."""

    sqlstate: str
    message: str
    detail: str = ""
    hint: str = ""
    rule: str = ""
    position: int = 0
    severity: str = "ERROR"

    def to_bytes(self) -> bytes:
        """The ErrorResponse message."""
        return error_response(
            sqlstate=self.sqlstate,
            message=self.message,
            severity=self.severity,
            detail=self.detail,
            hint=self.hint,
            position=self.position,
            constraint=self.rule,
        )

    def as_fatal(self) -> Refusal:
        """The same as the last thing the connection says."""
        return replace(self, severity="FATAL")

    def with_event(self, event: str) -> Refusal:
        """The same with the id of its record, where the detail is sqlwall's own."""
        if not self.rule or " event=" in self.detail:
            return self
        return replace(self, detail=f"{self.detail} event={event}")


def first_line(head: str, reason: str, tail: str) -> str:
    """The three parts of a first line, the reason cut where the line would be too long."""
    reason = reason.rstrip(".")
    room = FIRST_LINE_LIMIT - len(head) - len(tail)
    if len(reason) > room:
        reason = reason[: max(room - 3, 0)] + "..."
    return (head + reason + tail)[:FIRST_LINE_LIMIT]


def denied(verdict: Verdict, event: str) -> Refusal:
    """A ruleset refused the statement. `event` is the audit record's id."""
    target = verdict.target if len(verdict.target) <= 130 else verdict.target[:127] + "..."
    what = " on ".join(part for part in (verdict.operation.upper(), target) if part)
    retry = "Retry later." if verdict.retryable else "Do not retry unchanged."
    return Refusal(
        sqlstate.INSUFFICIENT_PRIVILEGE,
        first_line(
            f"sqlwall denied {what or 'the statement'} [{verdict.rule}]: ",
            verdict.reason,
            f". Nothing was executed. {retry}",
        ),
        f"rule={verdict.rule} retryable={'true' if verdict.retryable else 'false'} event={event}",
        verdict.hint,
        verdict.rule,
    )


def gate_refused(reason: str, rule: str, target: str, event: str, *, retryable: bool) -> Refusal:
    """The gate did not let a transaction commit; it was rolled back."""
    then = "Retry the transaction." if retryable else "Do not retry unchanged."
    return Refusal(
        sqlstate.INSUFFICIENT_PRIVILEGE,
        first_line(
            f"sqlwall denied COMMIT{f' of {target}' if target else ''} [{rule}]: ",
            reason,
            f". The transaction was rolled back. {then}",
        ),
        f"rule={rule} retryable={str(retryable).lower()} event={event}",
        "",
        rule,
    )


def internal_failure(event: str) -> Refusal:
    """Something of ours is broken; the statement was not forwarded. The log has the cause, the client does not."""
    return Refusal(
        sqlstate.SYSTEM_ERROR,
        "sqlwall refused the statement [closed]: an internal failure. Nothing was executed. Retry later.",
        f"rule=closed retryable=true event={event}",
        rule="closed",
    )


def login_closed(event: str) -> Refusal:
    """Something that a session needs is not to be had."""
    return Refusal(
        sqlstate.SYSTEM_ERROR,
        "sqlwall refused the login [closed]: an internal failure. Retry later.",
        f"rule=closed retryable=true event={event}",
        rule="closed",
    )


def rolled_back(event: str) -> Refusal:
    """Something of ours broke while a transaction was open; it was rolled back."""
    return Refusal(
        sqlstate.SYSTEM_ERROR,
        "sqlwall refused COMMIT [closed]: an internal failure. The transaction was rolled back. Retry later.",
        f"rule=closed retryable=true event={event}",
        rule="closed",
    )


def over_limit(what: str, rule: str, event: str) -> Refusal:
    """A limit was hit; `what` says which, in words that finish the sentence."""
    return Refusal(
        sqlstate.CONFIGURATION_LIMIT_EXCEEDED,
        f"sqlwall stopped the statement [{rule}]: {what}. Its result is incomplete. Do not retry unchanged.",
        f"rule={rule} retryable=false event={event}",
        "Ask for less: add a WHERE clause or a LIMIT.",
        rule,
    )


def over_rate(agent: str, limit: float, burst: int, wait: float, event: str) -> Refusal:
    """An agent sends more statements than it may; `wait` is in how many seconds the next one passes."""
    seconds = f"{max(wait, 0.01):.2f}" if wait < 10 else f"{wait:.0f}"
    return Refusal(
        sqlstate.CONFIGURATION_LIMIT_EXCEEDED,
        f"sqlwall refused the statement [{RATE_RULE}]: agent {agent} is over its limit of {limit:g} statements per"
        f" second ({burst} at once). Nothing was executed. Retry in {seconds} s.",
        f"rule={RATE_RULE} retryable=true event={event}",
        "Wait between statements, or ask for a higher limits.per_agent_rate.",
        RATE_RULE,
    )


def too_many_rows(verdict: Verdict, limit: int, event: str) -> Refusal:
    """A write would change more rows than its rule allows; it was not begun."""
    what = " on ".join(part for part in (verdict.operation.upper(), verdict.target[:130]) if part)
    return Refusal(
        sqlstate.CONFIGURATION_LIMIT_EXCEEDED,
        f"sqlwall denied {what} [{verdict.rule}]: more than {limit} rows. {_NOTHING}",
        f"rule={verdict.rule} retryable=false event={event}",
        "Change fewer rows at a time: add a condition to the WHERE clause.",
        verdict.rule,
    )


def ending(state: str, message: str) -> Refusal:
    """The last message of a connection that sqlwall ends."""
    return Refusal(state, message, severity="FATAL")


def unparsable(fault: Unparsable) -> Refusal:
    """What PostgreSQL itself says of such a text, or why we cannot read it now or ever."""
    if fault.sqlstate in (sqlstate.STATEMENT_TOO_COMPLEX, sqlstate.CONFIGURATION_LIMIT_EXCEEDED):
        is_full = fault.sqlstate == sqlstate.CONFIGURATION_LIMIT_EXCEEDED
        then = "Nothing was executed. Retry later." if is_full else _NOTHING
        return Refusal(
            fault.sqlstate,
            f"sqlwall refused the statement [parser]: {fault.message}. {then}",
            f"rule=parser retryable={str(is_full).lower()}",
            rule="parser",
        )
    return Refusal(fault.sqlstate or sqlstate.SYNTAX_ERROR, fault.message, position=fault.position)


def _structural(state: str, rule: str, what: str, hint: str = "") -> Refusal:
    return Refusal(state, f"sqlwall denied {what}. {_NOTHING}", f"rule={rule} retryable=false", hint, rule)


def reserved_name() -> Refusal:
    """A name with the prefix of our own."""
    return _structural(
        sqlstate.RESERVED_NAME,
        "reserved-name",
        f"a name that starts with {RESERVED_PREFIX} [reserved-name]",
        "Choose another name.",
    )


def function_call() -> Refusal:
    """The FunctionCall message runs a function with no SQL on the wire."""
    return _structural(
        sqlstate.INSUFFICIENT_PRIVILEGE,
        "function-call",
        "the FunctionCall message [function-call]: it carries no SQL to judge",
        "Use SELECT function(...) instead.",
    )


def several_commands() -> Refusal:
    """PostgreSQL's own error for several statements in a Parse."""
    return Refusal(sqlstate.SYNTAX_ERROR, "cannot insert multiple commands into a prepared statement")


def read_write() -> Refusal:
    """SET TRANSACTION READ WRITE and its like."""
    return _structural(
        sqlstate.INSUFFICIENT_PRIVILEGE,
        "read-only",
        "READ WRITE [read-only]: it may not be set here",
        "Ask for it in BEGIN, where the ruleset permits writes.",
    )


def embedded_control() -> Refusal:
    """Transaction control in a Query string that writes: the gate could not stand before the commit."""
    return _structural(
        sqlstate.INSUFFICIENT_PRIVILEGE,
        "embedded-transaction-control",
        "transaction control inside a string of several statements [embedded-transaction-control]",
        "Send BEGIN, the statements and COMMIT one by one.",
    )


def turned_string() -> Refusal:
    """A COMMIT in a string with more behind it: what ran before may have changed what a transaction begins as."""
    return _structural(
        sqlstate.FEATURE_NOT_SUPPORTED,
        "embedded-transaction-control",
        "a statement behind a COMMIT in a string of several statements [embedded-transaction-control]",
        "Send what stands behind the COMMIT by itself.",
    )


def mixed_write() -> Refusal:
    """A write outside a block in the same pipeline as transaction control, or before a Query without Sync."""
    return _structural(
        sqlstate.FEATURE_NOT_SUPPORTED,
        "mixed-write",
        "a write outside a transaction block together with transaction control in one pipeline [mixed-write]",
        "Send a Sync between them.",
    )


def flushed_write() -> Refusal:
    """A write in an implicit transaction that has read already: it could not become read-write any more."""
    return _structural(
        sqlstate.FEATURE_NOT_SUPPORTED,
        "flushed-write",
        "a write behind a read and a Flush in one implicit transaction [flushed-write]",
        "Send a Sync before it, or open a transaction block.",
    )


def pipelined_copy() -> Refusal:
    """COPY FROM STDIN with other messages behind it: where its data begins would not be certain."""
    return _structural(
        sqlstate.FEATURE_NOT_SUPPORTED,
        "pipelined-copy",
        "COPY FROM STDIN with other messages behind it in one pipeline [pipelined-copy]",
        "Send a Sync, then the data.",
    )


def bound_control() -> Refusal:
    """Values bound to COMMIT and its like: a type's checks would run code between our messages."""
    return _structural(
        sqlstate.FEATURE_NOT_SUPPORTED,
        "bound-control",
        "values bound to transaction control [bound-control]",
        "Bind it without parameters.",
    )


def stale_control() -> Refusal:
    """A portal of COMMIT and its like from an earlier pipeline: code may have made a cursor of its name since."""
    return _structural(
        sqlstate.FEATURE_NOT_SUPPORTED,
        "stale-control",
        "transaction control that an earlier pipeline has bound [stale-control]",
        "Send its Bind and Execute in one pipeline.",
    )


def replaced_control() -> Refusal:
    """A portal of COMMIT and its like was executed, and the transaction is still open: code has made a cursor of it."""
    return _structural(
        sqlstate.FEATURE_NOT_SUPPORTED,
        "replaced-control",
        "what stands behind transaction control whose portal has become a cursor [replaced-control]",
        "Send its Bind and Execute next to each other.",
    )


def executed_command() -> Refusal:
    """EXECUTE of what a PREPARE could not hold, such as COMMIT: it would do so under the name of an EXECUTE."""
    return _structural(
        sqlstate.FEATURE_NOT_SUPPORTED,
        "executed-command",
        "EXECUTE of a statement that is no SELECT, INSERT, UPDATE, DELETE or MERGE [executed-command]",
        "Send the statement itself, or bind and execute it by messages.",
    )


def fetched_command() -> Refusal:
    """FETCH or MOVE from the portal of something else than a query: it would run that under the name of a FETCH."""
    return _structural(
        sqlstate.FEATURE_NOT_SUPPORTED,
        "fetched-command",
        "FETCH from the portal of a statement that is no query [fetched-command]",
        "Execute the portal by its message.",
    )


def unsettled() -> Refusal:
    """Something behind a call of a function that is not known to be harmless: it may have changed what texts mean."""
    return _structural(
        sqlstate.FEATURE_NOT_SUPPORTED,
        "unsettled-pipeline",
        "a statement behind a call of a user-defined function in one pipeline [unsettled-pipeline]",
        "Send a Sync, or one statement per query.",
    )


def too_many_paths() -> Refusal:
    """More values of search_path than a session may have."""
    return _structural(
        sqlstate.CONFIGURATION_LIMIT_EXCEEDED,
        "search-path",
        "another search_path [search-path]: this session has set too many different ones",
        "Open a new connection.",
    )


def no_such_statement(name: bytes) -> Refusal:
    """PostgreSQL's own words."""
    if not name:
        return Refusal(sqlstate.INVALID_SQL_STATEMENT_NAME, "unnamed prepared statement does not exist")
    shown = name.decode("utf-8", "replace")
    return Refusal(sqlstate.INVALID_SQL_STATEMENT_NAME, f'prepared statement "{shown}" does not exist')


def statement_exists(name: bytes) -> Refusal:
    """PostgreSQL's own words."""
    shown = name.decode("utf-8", "replace")
    return Refusal(sqlstate.DUPLICATE_PREPARED_STATEMENT, f'prepared statement "{shown}" already exists')


def embedded_prepare(name: bytes) -> Refusal:
    """A string is refused whole: the server would have run what stands before the PREPARE that fails."""
    shown = name.decode("utf-8", "replace")
    return _structural(
        sqlstate.DUPLICATE_PREPARED_STATEMENT,
        "embedded-prepare",
        f'prepared statement "{shown}" already exists, in a string of several statements [embedded-prepare]',
        "Send each statement on its own.",
    )


def no_such_portal(name: bytes) -> Refusal:
    """PostgreSQL's own words."""
    return Refusal(sqlstate.INVALID_CURSOR_NAME, f'portal "{name.decode("utf-8", "replace")}" does not exist')


def warning(verdict: Verdict) -> bytes:
    """The NoticeResponse of mode `warn`: what enforcement would have done."""
    return notice_response(sqlstate=sqlstate.WARNING, message=verdict.warning, severity="WARNING")


def snapshot_kept(snapshot: str, rows: int, relations: Sequence[str]) -> bytes:
    """The NoticeResponse after a guarded write, where a rule wants it."""
    what, named = "row" if rows == 1 else "rows", ", ".join(relations)
    return notice_response(
        sqlstate=sqlstate.SUCCESSFUL_COMPLETION,
        message=f"sqlwall keeps snapshot {snapshot} of {rows} {what} of {named}."[:FIRST_LINE_LIMIT],
        hint=f"A person can undo it: sqlwall undo {snapshot}",
    )


def poison(nonce: str) -> bytes:
    """A text that no PostgreSQL can parse. Its syntax error quotes the nonce, by which the ledger knows it again."""
    return f"{RESERVED_PREFIX}_{nonce}".encode()
