"""Runs the cases that stand beside the rules: the same parser and judge, and a database that the case describes."""

from __future__ import annotations

from dataclasses import dataclass

from sqlwall.rules.context import Context, StaticCatalog
from sqlwall.rules.judge import judge, judge_unparsable, strictest
from sqlwall.rules.ruleset import Case, Ruleset
from sqlwall.rules.verdict import Action, Verdict
from sqlwall.sql.parse import TooLarge, analyze_text
from sqlwall.sql.statement import Statement, Unparsable

#: The rule of a text without statements: there is nothing to refuse.
NOTHING = Verdict(Action.ALLOW, "nothing-to-judge", "")


@dataclass(frozen=True, slots=True)
class CaseResult:
    """A case and what it came to; `failures` says in words what was expected instead, and is empty if it passed."""

    case: Case
    verdict: Verdict
    failures: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        return not self.failures


def run_cases(ruleset: Ruleset) -> list[CaseResult]:
    """Every case in the order of the file."""
    return [run_case(case, ruleset) for case in ruleset.cases]


def run_case(case: Case, ruleset: Ruleset) -> CaseResult:
    """One case."""
    facts = analyze_text(case.sql.encode())
    if isinstance(facts, TooLarge):
        facts = Unparsable("54001", "the text is too large for a case")
    verdict = judge_facts(facts, context_of(case), ruleset)
    return CaseResult(case, verdict, tuple(_failures(case, verdict)))


def judge_facts(facts: tuple[Statement, ...] | Unparsable, context: Context, ruleset: Ruleset) -> Verdict:
    """One verdict for a whole text, which passes or is refused as one."""
    if isinstance(facts, Unparsable):
        return judge_unparsable(facts, ruleset)
    if not facts:
        return NOTHING
    return strictest(judge(statement, context, ruleset) for statement in facts)


def context_of(case: Case) -> Context:
    """Who asks, and the database as far as the case describes it."""
    catalog = StaticCatalog(
        search_path=case.search_path,
        relations=case.relations,
        extensions=case.extensions,
        inert=case.inert,
    )
    return Context(
        agent=case.agent,
        user=case.user,
        database=case.database,
        catalog=catalog,
        search_path=case.search_path,
        application_name=case.application_name,
    )


def _failures(case: Case, verdict: Verdict) -> list[str]:
    expected = case.expect
    found: list[str] = []
    if verdict.action is not expected.action:
        why = f" ({verdict.reason})" if verdict.reason else ""
        found.append(
            f"expected {expected.action.name.lower()}, got {verdict.action.name.lower()} by {verdict.rule}{why}"
        )
    if expected.rule is not None and verdict.rule != expected.rule:
        found.append(f"expected the rule {expected.rule}, got {verdict.rule}")
    if expected.snapshot is not None and verdict.snapshot is not expected.snapshot:
        wanted, got = expected.snapshot.name.lower(), verdict.snapshot.name.lower()
        found.append(f"expected snapshot {wanted}, got {got}")
    return found
