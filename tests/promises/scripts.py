"""What agents write, in every shape that is covered by a snapshot and undone exactly."""

from __future__ import annotations

#: Each a script of statements, each statement a Query of its own.
SCRIPTS: dict[str, list[str]] = {
    "update by key": ["UPDATE parent SET name = 'x' WHERE id = 3"],
    "update of no row": ["UPDATE parent SET name = 'x' WHERE id = 999"],
    "delete with a cascade over two levels": ["DELETE FROM parent WHERE id IN (2, 3)"],
    "key update with a cascade": ["UPDATE parent SET id = 100 WHERE id = 5"],
    "insert": ["INSERT INTO parent VALUES (50, 'new', 1.50)"],
    "insert of several": ["INSERT INTO parent SELECT g, 'n', NULL FROM generate_series(60, 70) g"],
    "upsert": ["INSERT INTO parent VALUES (1, 'one', 1), (51, 'two', 2) ON CONFLICT (id) DO UPDATE SET name = excluded.name"],
    "merge": [
        "MERGE INTO parent p USING (VALUES (1, 'm'), (80, 'n')) AS s (id, name) ON p.id = s.id"
        " WHEN MATCHED THEN UPDATE SET name = s.name WHEN NOT MATCHED THEN INSERT VALUES (s.id, s.name, 0)"
    ],
    "writable CTE": [
        "WITH gone AS (DELETE FROM heap WHERE n = 1 RETURNING *) INSERT INTO parent SELECT 90, v, n FROM gone LIMIT 1"
    ],
    "no primary key and equal rows": ["UPDATE heap SET n = 9 WHERE n = 2", "DELETE FROM heap WHERE n = 0"],
    "a trigger that touches one row often": ["UPDATE noisy SET v = v || '!' WHERE id < 6"],
    "partitions": ["UPDATE parted SET v = 'w' WHERE id < 6", "UPDATE parted SET part = 2 WHERE id = 2"],
    "a view": ["UPDATE parents SET name = 'through the view' WHERE id = 7"],
    "generated column": ["UPDATE computed SET a = 7 WHERE id = 3"],
    "odd names and values": ["UPDATE odd SET \"a\"\"b\" = 'x' WHERE \"select\" = 1"],
    "quoted relation": ['DELETE FROM "Weird Name" AS w WHERE w.id = 2'],
    "types": ["UPDATE types SET id = id + 10 WHERE id < 3"],
    "inheritance": ["UPDATE grown SET base = 5 WHERE id > 0"],
    "using": ["DELETE FROM child c USING parent p WHERE c.parent = p.id AND p.id = 4"],
    "from": ["UPDATE child c SET note = p.name FROM parent p WHERE c.parent = p.id AND p.id < 4"],
    "random rows": ["DELETE FROM grandchild WHERE id IN (SELECT id FROM grandchild ORDER BY random() LIMIT 5)"],
    "block": ["BEGIN", "UPDATE parent SET name = 'a' WHERE id = 1", "UPDATE parent SET name = 'b' WHERE id = 1", "COMMIT"],
    "insert then update then delete": [
        "BEGIN", "INSERT INTO parent VALUES (52, 'x', 1)", "UPDATE parent SET name = 'y' WHERE id = 52",
        "INSERT INTO parent VALUES (53, 'x', 1)", "DELETE FROM parent WHERE id = 53", "COMMIT",
    ],
    "savepoints": [
        "BEGIN", "SAVEPOINT a", "DELETE FROM heap WHERE n = 1", "ROLLBACK TO a",
        "UPDATE heap SET v = 'other' WHERE n = 2", "RELEASE a", "SAVEPOINT b", "INSERT INTO heap VALUES ('late', 1)",
        "RELEASE b", "COMMIT",
    ],
    "savepoint credit": [
        "BEGIN", "SAVEPOINT a", "UPDATE heap SET n = n WHERE n = 1 AND v = 'nothing'", "ROLLBACK TO a",
        "DELETE FROM heap WHERE n = 2 AND v = 'same'", "COMMIT",
    ],
    "repeatable read": [
        "BEGIN ISOLATION LEVEL REPEATABLE READ", "UPDATE parent SET name = 'r' WHERE id = 9", "COMMIT",
    ],
    "serializable": ["BEGIN ISOLATION LEVEL SERIALIZABLE", "DELETE FROM heap WHERE n = 1", "COMMIT"],
    "several statements in one Query": ["UPDATE parent SET name = 'a' WHERE id = 1; DELETE FROM heap WHERE n = 1"],
    "prepared by SQL": ["PREPARE p AS UPDATE parent SET name = 'z' WHERE id = $1", "EXECUTE p(4)"],
    "a cursor": [
        "BEGIN", "DECLARE c CURSOR FOR SELECT * FROM heap WHERE n = 1 FOR UPDATE", "FETCH 1 FROM c",
        "UPDATE heap SET v = 'here' WHERE CURRENT OF c", "COMMIT",
    ],
}  # fmt: skip
