"""Why a text gets its verdict: the facts, and for every effect each rule that could speak of it and what it said.

Runs the checks that `judge` runs, so the explanation cannot differ from the verdict.
"""

from __future__ import annotations

from dataclasses import dataclass

from sqlwall.rules.builtin import refuse_statement
from sqlwall.rules.cases import judge_facts
from sqlwall.rules.context import Context
from sqlwall.rules.judge import acts, refuse_act
from sqlwall.rules.match import Act
from sqlwall.rules.ruleset import Rule, Ruleset
from sqlwall.rules.verdict import Action, Verdict
from sqlwall.sql.parse import TooLarge, analyze_text
from sqlwall.sql.statement import Statement, Unparsable


@dataclass(frozen=True, slots=True)
class CheckResult:
    """One key of a rule, as the ruleset has it, and whether it holds for the effect."""

    key: str
    holds: bool


@dataclass(frozen=True, slots=True)
class RuleResult:
    """One rule that speaks of the effect's operation; it matched if all its checks hold."""

    rule: str
    action: Action
    line: int
    checks: tuple[CheckResult, ...]

    @property
    def matched(self) -> bool:
        return all(check.holds for check in self.checks)

    @property
    def why(self) -> str:
        """One line for people."""
        missing = [check.key for check in self.checks if not check.holds]
        if missing:
            return f"does not match: {'; '.join(missing)}"
        keys = [check.key for check in self.checks]
        return f"matches: {'; '.join(keys)}" if keys else "matches: it has no conditions"


@dataclass(frozen=True, slots=True)
class EffectExplanation:
    """One effect under the server's names, with what sqlwall itself and every rule say of it."""

    act: Act
    builtin: tuple[str, str] | None
    rules: tuple[RuleResult, ...]


@dataclass(frozen=True, slots=True)
class StatementExplanation:
    """One statement: its facts, a refusal of the statement as a whole if there is one, and its effects."""

    statement: Statement
    builtin: tuple[str, str] | None
    effects: tuple[EffectExplanation, ...]


@dataclass(frozen=True, slots=True)
class Explanation:
    """A whole text. `unparsable` is set where there are no facts, and the verdict stands for itself."""

    verdict: Verdict
    statements: tuple[StatementExplanation, ...] = ()
    unparsable: Unparsable | None = None


def explain(text: str, context: Context, ruleset: Ruleset) -> Explanation:
    """The explanation of a text; one that is too large for this process is explained as unparsable."""
    facts = analyze_text(text.encode("utf-8", "surrogatepass"))
    if isinstance(facts, TooLarge):
        facts = Unparsable("54001", "the text is too large to be explained")
    return explain_facts(facts, context, ruleset)


def explain_facts(
    facts: tuple[Statement, ...] | Unparsable, context: Context, ruleset: Ruleset
) -> Explanation:
    """The same for facts that are known already."""
    verdict = judge_facts(facts, context, ruleset)
    if isinstance(facts, Unparsable):
        return Explanation(verdict, unparsable=facts)
    return Explanation(verdict, tuple(_explain_statement(statement, context, ruleset) for statement in facts))


def _explain_statement(statement: Statement, context: Context, ruleset: Ruleset) -> StatementExplanation:
    return StatementExplanation(
        statement,
        refuse_statement(statement, permits_writes=ruleset.permits_writes),
        tuple(_explain_act(act, statement, context, ruleset) for act in acts(statement, context)),
    )


def _explain_act(act: Act, statement: Statement, context: Context, ruleset: Ruleset) -> EffectExplanation:
    rules = ruleset.by_operation[act.operation]
    return EffectExplanation(
        act, refuse_act(act), tuple(_explain_rule(rule, act, statement, context) for rule in rules)
    )


def _explain_rule(rule: Rule, act: Act, statement: Statement, context: Context) -> RuleResult:
    checks = tuple(
        CheckResult(check.describe(), check.holds(act, statement, context)) for check in rule.checks
    )
    return RuleResult(rule.id, rule.action, rule.line, checks)
