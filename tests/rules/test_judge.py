"""The decision: deny overrides, default deny, every effect covered, names as the server would use them."""

from __future__ import annotations

import pytest

from sqlwall.rules.builtin import DEFAULT_DENY, UNPARSABLE
from sqlwall.rules.context import Home, RelationKind, ResolvedRelation, StaticCatalog
from sqlwall.rules.judge import acts, judge, judge_unparsable, judge_witness, strictest
from sqlwall.rules.ruleset import Ruleset
from sqlwall.rules.verdict import Action, Limits, SnapshotPolicy, Verdict
from sqlwall.sql.statement import (
    WRITE_OPERATIONS,
    Bounded,
    FunctionName,
    Operation,
    Relation,
    Statement,
    Unparsable,
)
from tests.rules.facts import context, delete, effect, rules, select, statement

WRITES = """
    {id: reads, operations: [select], action: allow, limits: {rows: 100, time: 30s}}
    {id: bounded-only, operations: [update, delete], bounded: false, action: deny, hint: Add a WHERE clause.}
    {id: writes, operations: [insert, update, delete, merge], tables: ["public.*"], action: allow, limits: {rows: 10}}
"""


def verdict_of(found: Statement, ruleset: Ruleset, catalog: StaticCatalog | None = None) -> Verdict:
    return judge(found, context(catalog), ruleset)


def test_what_no_rule_speaks_of_is_refused() -> None:
    verdict = verdict_of(statement(effect(Operation.DROP, "orders")), rules(WRITES))
    assert verdict == Verdict(
        Action.DENY,
        DEFAULT_DENY,
        "no rule allows it",
        operation="DROP",
        target="public.orders",
        judged=Action.DENY,
    )


@pytest.mark.parametrize("operation", Operation)
def test_a_ruleset_that_allows_nothing_refuses_every_operation(operation: Operation) -> None:
    ruleset = rules("{id: none, operations: [select], action: deny}")
    assert verdict_of(statement(effect(operation, "orders")), ruleset).action is Action.DENY
    assert verdict_of(statement(effect(operation)), ruleset).action is Action.DENY


@pytest.mark.parametrize("bounded", Bounded)
def test_deny_overrides_allow_whatever_the_order(bounded: Bounded) -> None:
    lines = [line for line in WRITES.strip().splitlines() if "reads" not in line]
    for ruleset in (rules("\n".join(lines)), rules("\n".join(reversed(lines)))):
        verdict = verdict_of(delete(bounded=bounded), ruleset)
        assert verdict.action is (Action.ALLOW if bounded is Bounded.BOUNDED else Action.DENY)


def test_the_reason_says_which_fact_decided() -> None:
    verdict = verdict_of(delete(bounded=Bounded.NO_WHERE), rules(WRITES))
    assert (verdict.reason, verdict.hint) == ("no WHERE clause", "Add a WHERE clause.")
    assert verdict_of(delete(bounded=Bounded.ALWAYS_TRUE), rules(WRITES)).reason.endswith("always true")


def test_one_refused_effect_refuses_the_statement_wherever_it_stands() -> None:
    parts = [
        effect(Operation.SELECT, "a"),
        effect(Operation.DELETE, "private.b"),
        effect(Operation.SELECT, "c"),
    ]
    for rotation in range(3):
        found = statement(*parts[rotation:], *parts[:rotation])
        verdict = verdict_of(found, rules(WRITES))
        assert (verdict.action, verdict.target) == (Action.DENY, "private.b")


def test_the_rule_of_a_write_decides_over_that_of_the_reads_around_it() -> None:
    found = statement(effect(Operation.SELECT, "a"), effect(Operation.DELETE, "b"))
    verdict = verdict_of(found, rules(WRITES))
    assert (verdict.rule, verdict.snapshot) == ("writes", SnapshotPolicy.REQUIRED)
    assert verdict.limits == Limits(rows=10, time=30)


def test_a_hold_is_stricter_than_an_allow_and_may_be_retried() -> None:
    ruleset = rules(
        """
        {id: all, operations: [delete], action: allow}
        {id: ask, operations: [delete], tables: ["public.orders"], action: hold}
        """
    )
    verdict = verdict_of(delete(), ruleset)
    assert (verdict.action, verdict.rule, verdict.retryable) == (Action.HOLD, "ask", True)


@pytest.mark.parametrize("operation", sorted(WRITE_OPERATIONS, key=str))
def test_a_write_wants_a_snapshot_unless_every_rule_that_allows_it_waives(operation: Operation) -> None:
    silent = f"{{id: silent, operations: [{operation.value}], action: allow}}"
    waiver = f"{{id: waiver, operations: [{operation.value}], action: allow, snapshot: none}}"
    write = statement(effect(operation, "orders"))
    assert verdict_of(write, rules(silent)).snapshot is SnapshotPolicy.REQUIRED
    assert verdict_of(write, rules(waiver)).snapshot is SnapshotPolicy.NONE
    for both in (f"{silent}\n{waiver}", f"{waiver}\n{silent}"):
        assert verdict_of(write, rules(both)).snapshot is SnapshotPolicy.REQUIRED


def test_the_tightest_limits_of_all_rules_hold() -> None:
    ruleset = rules(
        """
        {id: a, operations: [select], action: allow, limits: {rows: 5, time: 1min}}
        {id: b, operations: [select], action: allow, limits: {rows: 50, bytes: 1KiB}}
        """
    )
    assert verdict_of(select(), ruleset).limits == Limits(rows=5, bytes=1024, time=60)


def test_a_message_may_name_operation_target_and_rule() -> None:
    ruleset = rules(
        '{id: no, operations: [copy_program], action: deny, message: "{operation} {target} {rule}"}'
    )
    verdict = verdict_of(statement(effect(Operation.COPY_PROGRAM, "orders")), ruleset)
    assert verdict.reason == "COPY PROGRAM public.orders no"


READS = rules('{id: reads, operations: [select], tables: ["public.*", "pg_catalog.*"], action: allow}')


def test_a_select_without_relation_passes_a_rule_about_tables() -> None:
    assert verdict_of(statement(effect(Operation.SELECT)), READS).action is Action.ALLOW


def test_names_are_judged_as_the_server_resolves_them() -> None:
    catalog = StaticCatalog(("secret", "public"), relations={"secret.orders": RelationKind.TABLE})
    verdict = verdict_of(select("orders"), READS, catalog)
    assert (verdict.action, verdict.target) == (Action.DENY, "secret.orders")


def test_postgresqls_own_schemas_are_catalogs_whatever_the_catalog_says() -> None:
    catalog = StaticCatalog(relations={"pg_catalog.pg_class": RelationKind.TABLE})
    ruleset = rules("{id: tables, operations: [select], kinds: [table], action: allow}")
    assert verdict_of(select("pg_catalog.pg_class"), ruleset, catalog).action is Action.DENY


def test_a_catalog_with_secrets_is_a_kind_of_its_own() -> None:
    ruleset = rules("{id: catalogs, operations: [select], kinds: [catalog], action: allow}")
    assert verdict_of(select("pg_class"), ruleset).action is Action.ALLOW
    assert verdict_of(select("pg_authid"), ruleset).action is Action.DENY
    assert verdict_of(select("public.pg_authid"), ruleset).action is Action.DENY


def test_a_table_that_only_looks_like_a_secret_catalog_is_an_ordinary_one() -> None:
    ruleset = rules("{id: no-secrets, operations: [select], kinds: [sensitive], action: deny}")
    assert verdict_of(select("public.pg_authid"), ruleset).rule == DEFAULT_DENY
    assert verdict_of(select("pg_catalog.pg_authid"), ruleset).rule == "no-secrets"


class Nowhere(StaticCatalog):
    """A catalog that knows no relation and no function."""

    def resolve(self, relation: Relation) -> ResolvedRelation | None:
        return None

    def homes(self, function: FunctionName) -> tuple[Home, ...]:
        return ()


def test_an_unknown_relation_is_judged_as_what_it_would_become() -> None:
    [act] = acts(select("nothing"), context(Nowhere(), search_path=("shop", "public")))
    assert (act.schema, act.name, act.kind) == ("shop", "nothing", RelationKind.UNKNOWN)


def call(name: str, schema: str | None = None, kind: str = "function") -> Statement:
    return select(functions=(FunctionName(schema, name, kind, 1),))


@pytest.mark.parametrize("schema", [None, "pg_catalog"])
def test_functions_that_only_compute_need_no_rule(schema: str | None) -> None:
    assert verdict_of(call("lower", schema), READS).action is Action.ALLOW
    assert verdict_of(call("=", schema, "operator"), READS).action is Action.ALLOW
    assert verdict_of(call("int4", schema, "type"), READS).action is Action.ALLOW


@pytest.mark.parametrize("schema", [None, "pg_catalog", "public", "PG_CATALOG"])
def test_every_other_function_needs_one(schema: str | None) -> None:
    verdict = verdict_of(call("pg_read_file", schema), READS)
    assert (verdict.action, verdict.operation) == (Action.DENY, "FUNCTION")


@pytest.mark.parametrize("schema", ["public", "PG_CATALOG", "pg_temp", "shadow"])
def test_the_name_of_a_pure_function_in_another_schema_is_another_function(schema: str) -> None:
    assert verdict_of(call("lower", schema), READS).action is Action.DENY


def test_a_pure_function_that_is_overloaded_loses_its_allowance() -> None:
    catalog = StaticCatalog(overloads=frozenset({"lower"}))
    assert verdict_of(call("lower"), READS, catalog).action is Action.DENY
    assert verdict_of(call("lower", "pg_catalog"), READS, catalog).action is Action.ALLOW


def test_a_call_that_leads_nowhere_is_refused() -> None:
    assert verdict_of(call("mystery"), READS, Nowhere()).action is Action.DENY


def test_every_home_of_a_call_must_be_allowed() -> None:
    class TwoHomes(StaticCatalog):
        def homes(self, function: FunctionName) -> tuple[Home, ...]:
            return (Home("public"), Home("shadow"))

    ruleset = rules(
        """
        {id: reads, operations: [select], action: allow}
        {id: code, operations: [function], functions: [public.fmt], action: allow}
        """
    )
    assert verdict_of(call("fmt"), ruleset, TwoHomes()).target == "shadow.fmt"
    assert verdict_of(call("fmt"), ruleset).action is Action.ALLOW


def test_an_inert_type_runs_no_code() -> None:
    catalog = StaticCatalog(inert=frozenset({"mood"}))
    assert verdict_of(call("mood", kind="type"), READS, catalog).action is Action.ALLOW
    assert verdict_of(call("mood", kind="type"), READS).action is Action.DENY


def test_a_column_that_may_be_a_function_is_judged_as_one() -> None:
    catalog = StaticCatalog(overloads=frozenset({"evil"}))
    assert verdict_of(select(columns=("evil",)), READS, catalog).action is Action.DENY
    assert verdict_of(select(columns=("t.total",)), READS, catalog).action is Action.ALLOW


def test_strictest_of_several_verdicts_keeps_every_need() -> None:
    ruleset = rules(WRITES)
    allowed, refused = (
        judge(found, context(), ruleset) for found in (delete(), statement(effect(Operation.DROP, "x")))
    )
    assert strictest([allowed, refused]).rule == DEFAULT_DENY
    assert strictest([judge(select(), context(), ruleset), allowed]).snapshot is SnapshotPolicy.REQUIRED


@pytest.mark.parametrize("mode", ["observe", "warn"])
def test_the_strictest_of_several_is_the_one_that_enforcement_would_refuse(mode: str) -> None:
    ruleset = rules(WRITES, mode)
    verdicts = [
        judge(found, context(), ruleset) for found in (select(), statement(effect(Operation.DROP, "x")))
    ]
    for several in (verdicts, verdicts[::-1]):
        assert (strictest(several).judged, strictest(several).warning) == (Action.DENY, verdicts[1].warning)


@pytest.mark.parametrize("mode", ["observe", "warn"])
def test_other_modes_let_everything_pass_and_keep_the_verdict_for_the_record(mode: str) -> None:
    ruleset = rules(WRITES, mode)
    verdict = judge(statement(effect(Operation.UNKNOWN)), context(), ruleset)
    assert (verdict.action, verdict.judged) == (Action.ALLOW, Action.DENY)
    assert bool(verdict.warning) is (mode == "warn")
    write = judge(delete(), context(), ruleset)
    assert (write.snapshot, write.limits) == (SnapshotPolicy.NONE, Limits())
    assert judge_unparsable(Unparsable("42601", "syntax error"), ruleset).action is Action.ALLOW


def test_a_text_without_facts_is_refused() -> None:
    verdict = judge_unparsable(Unparsable("42601", "syntax error"), rules(WRITES))
    assert (verdict.action, verdict.rule, verdict.reason) == (Action.DENY, UNPARSABLE, "syntax error")


def witness(operation: Operation, name: str, ruleset: Ruleset, **columns: tuple[str, ...]) -> Verdict:
    schema, _, table = name.partition(".")
    return judge_witness(operation, schema, table, context(), ruleset, **columns)


def test_a_measured_write_is_permitted_only_under_its_own_name() -> None:
    assert witness(Operation.DELETE, "public.orders", rules(WRITES)).snapshot is SnapshotPolicy.REQUIRED
    assert witness(Operation.DELETE, "public.orders", rules(WRITES)).action is Action.ALLOW
    assert witness(Operation.DELETE, "payroll.staff", rules(WRITES)).action is Action.DENY
    assert witness(Operation.TRUNCATE, "public.orders", rules(WRITES)).action is Action.DENY
    assert witness(Operation.INSERT, "pg_catalog.pg_class", rules(WRITES)).action is Action.DENY


def test_the_search_path_does_not_bend_a_measured_name() -> None:
    catalog = StaticCatalog(("shadow",), relations={"shadow.orders": RelationKind.VIEW})
    verdict = judge_witness(Operation.DELETE, "public", "orders", context(catalog), rules(WRITES))
    assert verdict.target == "public.orders"


WAIVER = rules('{id: log, operations: [insert], tables: ["public.log"], action: allow, snapshot: none}')


def test_a_waived_relation_is_allowed_without_snapshot() -> None:
    verdict = witness(Operation.INSERT, "public.log", WAIVER)
    assert (verdict.action, verdict.snapshot) == (Action.ALLOW, SnapshotPolicy.NONE)
    assert witness(Operation.UPDATE, "public.log", WAIVER).action is Action.DENY


@pytest.mark.parametrize("operation", [Operation.INSERT, Operation.UPDATE, Operation.DELETE])
def test_a_measured_write_may_come_from_a_merge(operation: Operation) -> None:
    merges = rules("{id: merges, operations: [merge], action: allow}")
    verdict = witness(operation, "public.orders", merges)
    assert (verdict.action, verdict.snapshot) == (Action.ALLOW, SnapshotPolicy.REQUIRED)
    assert verdict.operation == operation.name


def test_a_rule_that_denies_the_measured_operation_stands_against_a_merge() -> None:
    ruleset = rules(
        """
        {id: merges, operations: [merge], action: allow}
        {id: no-deletes, operations: [delete], action: deny}
        """
    )
    assert witness(Operation.DELETE, "public.orders", ruleset).rule == "no-deletes"


def test_rules_about_columns_fail_closed_for_writes_that_no_text_named() -> None:
    allowed = rules("{id: notes, operations: [update], columns: [note], action: allow}")
    assert witness(Operation.UPDATE, "public.orders", allowed).action is Action.DENY
    assert witness(Operation.UPDATE, "public.orders", allowed, columns=("note",)).action is Action.ALLOW
    denied = rules(
        """
        {id: all, operations: [update], action: allow}
        {id: prices, operations: [update], columns: [price], action: deny}
        """
    )
    assert witness(Operation.UPDATE, "public.orders", denied).action is Action.DENY
    assert witness(Operation.UPDATE, "public.orders", denied, columns=("note",)).action is Action.ALLOW


def test_the_walls_own_relations_are_never_permitted() -> None:
    everything = rules("{id: all, operations: [insert], action: allow, snapshot: none}")
    assert witness(Operation.INSERT, "_sqlwall_1.t", everything).action is Action.DENY


def test_observe_waives_everything_at_the_gate() -> None:
    verdict = witness(Operation.TRUNCATE, "public.orders", rules(WRITES, "observe"))
    assert (verdict.action, verdict.snapshot) == (Action.ALLOW, SnapshotPolicy.NONE)
