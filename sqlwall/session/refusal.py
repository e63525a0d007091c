"""The ErrorResponses that sqlwall itself raises, and the poison that makes the server raise them in place.

Everything a client reads from sqlwall is worded here. The first line stands alone, because several drivers show nothing
else: what was refused, by which rule, whether anything ran, whether to retry (DESIGN: promise 8, decision 10).
"""

from __future__ import annotations

from dataclasses import dataclass

from sqlwall.rules.verdict import Verdict
from sqlwall.wire import sqlstate
from sqlwall.wire.backend import diagnostic_fields, error_response, notice_response

#: The first line's bound: what agents read must not be a way to echo a text back at length.
FIRST_LINE_LIMIT = 300

#: Prepared statements, portals and savepoints of this prefix are sqlwall's; an agent may not name its own so.
RESERVED_PREFIX = "_sqlwall"


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
            diagnostic_fields(
                self.sqlstate,
                self.message,
                severity=self.severity,
                detail=self.detail,
                hint=self.hint,
                position=self.position,
                constraint=self.rule,
            )
        )


def denied(verdict: Verdict, event: str) -> Refusal:
    """A ruleset refused the statement. `event` is the audit record's id."""
    target = f"on {verdict.target}" if verdict.target else ""
    what = " ".join(part for part in (verdict.operation.upper(), target) if part)
    retry = "Retry later." if verdict.retryable else "Do not retry unchanged."
    head = f"sqlwall denied {what or 'the statement'} [{verdict.rule}]: "
    tail = f". Nothing was executed. {retry}"
    reason = verdict.reason.rstrip(".")
    room = FIRST_LINE_LIMIT - len(head) - len(tail)
    if len(reason) > room:
        reason = reason[: max(room - 3, 0)] + "..."
    return Refusal(
        sqlstate.INSUFFICIENT_PRIVILEGE,
        (head + reason + tail)[:FIRST_LINE_LIMIT],
        f"rule={verdict.rule} retryable={'true' if verdict.retryable else 'false'} event={event}",
        verdict.hint,
        verdict.rule,
    )


def internal_failure(event: str) -> Refusal:
    """Something of ours is broken; the statement was not forwarded. The log has the cause, the client does not."""
    return Refusal(
        sqlstate.SYSTEM_ERROR,
        "sqlwall refused the statement [closed]: an internal failure. Nothing was executed. Retry later.",
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


def warning(verdict: Verdict) -> bytes:
    """The NoticeResponse of mode `warn`: what enforcement would have done."""
    message = f"sqlwall would deny this statement [{verdict.rule}]: {verdict.reason}"
    return notice_response(diagnostic_fields(sqlstate.WARNING, message, severity="WARNING"))


def poison(nonce: str) -> bytes:
    """A text that no PostgreSQL can parse. Its syntax error quotes the nonce, by which the ledger knows it again."""
    return f"{RESERVED_PREFIX}_{nonce}".encode()
