"""Facts of every statement of the grammar, against data files and a second walk that knows nothing of nodes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pglast
import pytest
import yaml
from pglast import ast
from pglast.parser import ParseError, parse_sql_json
from pglast.visitors import Skip, Visitor

from sqlwall.sql.analyze import analyze
from sqlwall.sql.definitions import DEFINING_STATEMENTS
from sqlwall.sql.parse import analyze_text
from sqlwall.sql.settings import SESSION_STATEMENTS
from sqlwall.sql.statement import Effect, Operation, Statement, Transaction, TransactionControl, Unparsable
from sqlwall.sql.statements import ROW_STATEMENTS
from tests.sql.rendering import effect_lines

DATA = Path(__file__).parent / "data"
CASES: list[dict[str, Any]] = yaml.safe_load((DATA / "effects.yaml").read_text())
PLANTED = (DATA / "planted.sql").read_text().splitlines()
HOSTILE = (DATA / "hostile.sql").read_text().splitlines()
TEXTS = [case["sql"] for case in CASES] + PLANTED + HOSTILE


def statements(text: str) -> tuple[Statement, ...]:
    facts = analyze_text(text.encode())
    assert isinstance(facts, tuple), facts
    return facts


def only(text: str) -> Statement:
    (statement,) = statements(text)
    return statement


def functions(text: str) -> list[str]:
    return [
        f"{function.kind} {function}/{function.arguments}"
        for statement in statements(text)
        for function in statement.functions
    ]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["sql"])
def test_a_statement_has_its_tag_and_its_effects(case: dict[str, Any]) -> None:
    statement = only(case["sql"])
    assert statement.tag == case["tag"]
    assert effect_lines(statement) == case["effects"]


@pytest.mark.parametrize("text", PLANTED)
def test_a_function_is_seen_in_whatever_slot_it_stands(text: str) -> None:
    found = [function for statement in statements(text) for function in statement.functions]
    assert "pg_read_file" in {function.name for function in found}
    assert any(statement.volatile for statement in statements(text))


def calls_in(value: Any) -> Iterator[str]:
    """Names in every FuncCall, found without knowing what a node is."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if key in ("FuncCall", "funccall"):
                yield inner["funcname"][-1]["String"].get("sval", "")
            yield from calls_in(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from calls_in(inner)


@pytest.mark.parametrize("text", TEXTS)
def test_every_call_that_a_dumb_search_finds_is_noted(text: str) -> None:
    try:
        tree = orjson.loads(parse_sql_json(text))
    except ParseError:
        assert isinstance(analyze_text(text.encode()), Unparsable)
        return
    noted = {function.name for statement in statements(text) for function in statement.functions}
    assert set(calls_in(tree)) <= noted


class Names(Visitor):
    """Tables, functions, operators and types, found by pglast's own walk over its own tree."""

    def __init__(self) -> None:
        self.tables: set[str] = set()
        self.queries: set[str] = set()
        self.operators: set[str] = set()
        self.types: set[str] = set()

    def visit_RangeVar(self, _ancestors: Any, node: ast.RangeVar) -> None:  # noqa: N802 (pglast's name)
        self.tables.add(node.relname)

    def visit_LockingClause(self, _ancestors: Any, node: ast.LockingClause) -> Any:  # noqa: N802
        return Skip  # it names aliases

    def visit_ConstraintsSetStmt(self, _ancestors: Any, node: ast.ConstraintsSetStmt) -> Any:  # noqa: N802
        return Skip  # it names constraints

    def visit_ObjectWithArgs(self, _ancestors: Any, node: ast.ObjectWithArgs) -> Any:  # noqa: N802
        return Skip  # its types tell which function is meant

    def visit_CommonTableExpr(self, _ancestors: Any, node: ast.CommonTableExpr) -> None:  # noqa: N802
        self.queries.add(node.ctename)

    def visit_A_Expr(self, _ancestors: Any, node: ast.A_Expr) -> None:  # noqa: N802
        if "BETWEEN" not in node.name[-1].sval:
            self.operators.add(node.name[-1].sval)

    def visit_TypeName(self, _ancestors: Any, node: ast.TypeName) -> None:  # noqa: N802
        if node.names and not node.pct_type:
            self.types.add(node.names[-1].sval)


@pytest.mark.parametrize("text", TEXTS)
def test_pglasts_own_walk_finds_no_table_operator_or_type_that_is_not_noted(text: str) -> None:
    try:
        tree = pglast.parse_sql(text)
    except ParseError:
        return
    names = Names()
    names(tree)
    facts = statements(text)
    noted = {(function.kind, function.name) for statement in facts for function in statement.functions}
    tables = {effect.relation.name for statement in facts for effect in statement.effects if effect.relation}
    named = {name for statement in facts for name in statement.names}
    assert names.tables - names.queries - named <= tables
    assert {("operator", name) for name in names.operators} <= noted
    assert {("type", name) for name in names.types} <= noted


def test_every_statement_of_the_grammar_has_a_handler_and_a_case() -> None:
    made_later = {"SetOperationStmt", "PLAssignStmt", "RawStmt"}
    every = {name for name in vars(ast) if name.endswith("Stmt")} - made_later
    handled = {*ROW_STATEMENTS, *SESSION_STATEMENTS, *DEFINING_STATEMENTS}
    assert every - handled == set()
    seen: set[str] = set()
    for text in TEXTS:
        try:
            seen.update(key for key in nodes_in(orjson.loads(parse_sql_json(text))) if key.endswith("Stmt"))
        except ParseError:
            continue
    assert every - seen == set()


def nodes_in(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield key
            yield from nodes_in(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from nodes_in(inner)


@pytest.mark.parametrize("text", TEXTS)
def test_nothing_that_the_grammar_makes_is_unknown(text: str) -> None:
    facts = analyze_text(text.encode())
    if isinstance(facts, tuple):
        assert [e for s in facts for e in s.effects if e.operation is Operation.UNKNOWN] == []


@pytest.mark.parametrize(
    "tree",
    [
        {},
        {"NewStmt": {}},
        {"SelectStmt": {"targetList": [{"NewNode": {}}]}},
        {"SelectStmt": {"targetList": [1]}},
        {"SelectStmt": {"whereClause": {"A_Expr": {"lexpr": {"Query": {}}}}}},
        {"SelectStmt": {"newField": {"anything": {}}}},
        {"SelectStmt": 1},
        {"InsertStmt": {}},
        {"TransactionStmt": {"kind": "TRANS_STMT_NEW"}},
        {"VariableSetStmt": {"kind": "VAR_NEW", "name": "x"}},
        {"VariableSetStmt": {"kind": "VAR_SET_MULTI", "name": "NEW"}},
        {"SelectStmt": {}, "DeleteStmt": {}},
        {"FuncCall": {"funcname": []}},
    ],
    ids=str,
)
def test_what_is_not_known_is_an_unknown_effect(tree: dict[str, Any]) -> None:
    statement = analyze(tree, 0, 1)
    assert Operation.UNKNOWN in {effect.operation for effect in statement.effects}


@pytest.mark.parametrize(
    ("text", "control"),
    [
        ("BEGIN", TransactionControl(Transaction.BEGIN)),
        ("BEGIN READ WRITE", TransactionControl(Transaction.BEGIN, read_only=False)),
        ("BEGIN READ ONLY, READ WRITE", TransactionControl(Transaction.BEGIN, read_only=False)),
        ("BEGIN READ WRITE, READ ONLY", TransactionControl(Transaction.BEGIN, read_only=False)),
        (
            "START TRANSACTION ISOLATION LEVEL SERIALIZABLE READ ONLY",
            TransactionControl(Transaction.BEGIN, read_only=True, isolation="serializable"),
        ),
        ("COMMIT", TransactionControl(Transaction.COMMIT)),
        ("END AND CHAIN", TransactionControl(Transaction.COMMIT, chain=True)),
        ("COMMIT AND NO CHAIN", TransactionControl(Transaction.COMMIT)),
        ("ABORT AND CHAIN", TransactionControl(Transaction.ROLLBACK, chain=True)),
        ("SAVEPOINT s", TransactionControl(Transaction.SAVEPOINT, "s")),
        ("RELEASE s", TransactionControl(Transaction.RELEASE, "s")),
        ("ROLLBACK TO s", TransactionControl(Transaction.ROLLBACK_TO, "s")),
        ("SET TRANSACTION READ ONLY", TransactionControl(Transaction.SET_TRANSACTION, read_only=True)),
        (
            "SET SESSION CHARACTERISTICS AS TRANSACTION READ WRITE",
            TransactionControl(Transaction.SET_SESSION_CHARACTERISTICS, read_only=False),
        ),
        ("PREPARE TRANSACTION 'x'", None),
        ("SELECT 1", None),
        ("SET work_mem = 1", None),
    ],
)
def test_transaction_control_is_told(text: str, control: TransactionControl | None) -> None:
    assert only(text).control == control


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("SELECT f(1, 2), count(*), g(), h(VARIADIC a)", "f/2 count/0 g/0 h/-1"),
        ("SELECT app.f(1), db.app.g(a => 1, b := 2)", "app.f/1 app.g/2"),
        ("SELECT percentile_cont(0.5) WITHIN GROUP (ORDER BY a) FROM t", "percentile_cont/-1"),
        ('SELECT "F"(1), U&"\\0066"(1)', "F/1 f/1"),
        ("SELECT trim(a), extract(year FROM b) FROM t", "pg_catalog.btrim/1 pg_catalog.extract/2"),
        ("SELECT * FROM t TABLESAMPLE app.mine (1)", "app.mine/-1"),
        ("SELECT * FROM t TABLESAMPLE app.system (1)", "app.system/-1"),
    ],
)
def test_functions_are_told_with_schema_and_count(text: str, expected: str) -> None:
    assert functions(text) == [f"function {name}" for name in expected.split()]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("SELECT a + b, - c", "+ -"),
        ("SELECT a OPERATOR(app.+) b", "app.+"),
        ("SELECT a LIKE b, a NOT ILIKE b, a ~ b", "~~ !~~* ~"),
        ("SELECT a BETWEEN 1 AND 2, a NOT BETWEEN SYMMETRIC 1 AND 2", ">= <= < >"),
        ("SELECT a IN (1), a NOT IN (2)", "= <>"),
        ("SELECT a IN (SELECT 1)", "="),
        ("SELECT a < ANY (SELECT 1), a OPERATOR(app.=) ALL (ARRAY[1])", "< app.="),
        ("SELECT a IS DISTINCT FROM b, NULLIF(a, b)", "="),
        ("SELECT 1 FROM t ORDER BY a USING OPERATOR(app.<)", "app.<"),
        ("SELECT CASE a WHEN 1 THEN 2 END", "="),
        ("SELECT CASE WHEN true THEN 2 END", ""),
        ("SELECT 1 FROM t JOIN u USING (a)", "="),
        ("SELECT 1 FROM t NATURAL JOIN u", "="),
        ("SELECT 1 FROM t CROSS JOIN u", ""),
    ],
)
def test_operators_are_told_where_syntax_hides_them(text: str, expected: str) -> None:
    assert functions(text) == [f"operator {name}/-1" for name in expected.split()]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("SELECT 1::int, CAST('a' AS app.mood), '1'::ty[]", "pg_catalog.int4 app.mood ty"),
        ("SELECT date '2020-01-01', f 'x'", "date f"),
        ("SELECT * FROM f() AS x(a app.mood)", "app.mood"),
        ("SELECT json_value(a, '$' RETURNING app.mood) FROM t", "app.mood"),
        ("SELECT xmlserialize(CONTENT a AS app.mood) FROM t", "app.mood"),
        ("PREPARE p (app.mood) AS SELECT 1", "app.mood"),
        ("SELECT 1 FROM JSON_TABLE('[]', '$' COLUMNS (a app.mood))", "app.mood"),
    ],
)
def test_types_are_told_wherever_they_are_named(text: str, expected: str) -> None:
    found = [name.removeprefix("type ") for name in functions(text) if name.startswith("type ")]
    assert found == [f"{name}/-1" for name in expected.split()]


@pytest.mark.parametrize(
    ("text", "columns"),
    [
        ("SELECT a, *, t.* FROM t", ()),
        ("SELECT t.a, app.t.b FROM app.t", ("a", "b")),
        ("SELECT (t).f, (f(1)).g, (t.a).h FROM t", ("f", "g", "h", "a")),
        ('SELECT t."a.b" FROM t', ("a.b",)),
        ("UPDATE t SET a = t.f WHERE t.g", ("f", "g")),
    ],
)
def test_names_that_may_call_a_function_on_a_row_are_told(text: str, columns: tuple[str, ...]) -> None:
    assert set(only(text).columns) == set(columns)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("PREPARE p AS SELECT 1", ("p",)),
        ("EXPLAIN EXECUTE p", ("p",)),
        ("DEALLOCATE p", ("p",)),
        ("DECLARE c CURSOR FOR SELECT 1", ("c",)),
        ("FETCH c", ("c",)),
        ("CLOSE c", ("c",)),
        ("DELETE FROM t WHERE CURRENT OF c", ("c",)),
        ("SAVEPOINT s", ("s",)),
        ("ROLLBACK TO s", ("s",)),
        ("CREATE FUNCTION app.f() RETURNS int RETURN 1", ("app", "f")),
        ("CREATE SCHEMA s", ("s",)),
        ("DROP SCHEMA s, u", ("s", "u")),
        ("SET ROLE r", ("r",)),
        ("CREATE INDEX i ON t (a)", ("i",)),
    ],
)
def test_names_that_are_no_relation_are_told(text: str, names: tuple[str, ...]) -> None:
    assert only(text).names == names


@pytest.mark.parametrize(
    ("text", "prepared", "cursor", "hold"),
    [
        ("PREPARE p AS SELECT 1", "p", None, False),
        ("EXECUTE p", "p", None, False),
        ("EXPLAIN ANALYZE EXECUTE p", "p", None, False),
        ("CREATE TABLE n AS EXECUTE p", "p", None, False),
        ("DEALLOCATE p", "p", None, False),
        ("DEALLOCATE ALL", None, None, False),
        ("DECLARE c CURSOR WITH HOLD FOR SELECT 1", None, "c", True),
        ("DECLARE c CURSOR WITHOUT HOLD FOR SELECT 1", None, "c", False),
        ("EXPLAIN DECLARE c CURSOR WITH HOLD FOR SELECT 1", None, None, False),
        ("MOVE c", None, "c", False),
        ("CLOSE ALL", None, None, False),
    ],
)
def test_prepared_statements_and_cursors_are_told(
    text: str, prepared: str | None, cursor: str | None, hold: bool
) -> None:
    statement = only(text)
    assert (statement.prepared, statement.cursor, statement.hold) == (prepared, cursor, hold)


@pytest.mark.parametrize(
    "text", ["SELECT pg_sleep(1)", "SELECT app.f()", "DO ''", "CALL p()", "SELECT a @@@@ b"]
)
def test_code_that_may_do_more_than_compute_is_volatile(text: str) -> None:
    assert only(text).volatile


@pytest.mark.parametrize(
    "text", ["SELECT lower('A') || 'b'", "SELECT pg_catalog.lower('A')", "SELECT 1::int", "DELETE FROM t"]
)
def test_code_that_only_computes_is_not_volatile(text: str) -> None:
    assert not only(text).volatile


@pytest.mark.parametrize(
    ("call", "subject", "value"),
    [
        ("set_config('Work_Mem', '1MB', true)", "work_mem", "1MB"),
        ("pg_catalog.set_config('role'::text, 'x', true)", "role", "x"),
        ("set_config('rolex'::varchar(4), 'x', true)", None, "x"),
        ("set_config('rolex'::name, 'x', true)", None, "x"),
        ("set_config('ro' || 'le', 'x', true)", None, "x"),
        ("set_config($1, $2, true)", None, None),
        ("set_config('search_path', 'a, b'::char(1), true)", "search_path", None),
        ("set_config(is_local => true, setting_name => 'role', new_value => 'x')", None, None),
        ("set_config(VARIADIC ARRAY['role'])", None, None),
    ],
)
def test_set_config_sets_what_it_names_or_something_unknown(
    call: str, subject: str | None, value: str | None
) -> None:
    effects = only(f"SELECT {call}").effects
    assert Effect(Operation.SET, subject=subject, value=value) in effects
    assert Effect(Operation.SELECT) in effects
