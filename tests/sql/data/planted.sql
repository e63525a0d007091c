SELECT pg_read_file('x')
SELECT 1 FROM pg_read_file('x')
SELECT 1 FROM ROWS FROM (pg_read_file('x'))
SELECT 1 FROM ROWS FROM (now(), pg_read_file('x') AS (a int)) WITH ORDINALITY
SELECT 1 FROM LATERAL pg_read_file('x') AS f(a)
SELECT 1 FROM t, LATERAL (SELECT pg_read_file('x')) s
SELECT 1 FROM t JOIN u ON t.a = pg_read_file('x')
SELECT 1 FROM t LEFT JOIN (u CROSS JOIN pg_read_file('x') f) ON true
SELECT 1 FROM t TABLESAMPLE pg_read_file('x')
SELECT 1 FROM t TABLESAMPLE bernoulli (pg_read_file('x'))
SELECT 1 FROM t TABLESAMPLE system (1) REPEATABLE (pg_read_file('x'))
SELECT 1 WHERE pg_read_file('x') IS NULL
SELECT 1 FROM t GROUP BY pg_read_file('x')
SELECT 1 FROM t GROUP BY ROLLUP (a, pg_read_file('x'))
SELECT 1 FROM t GROUP BY GROUPING SETS ((), (a, pg_read_file('x')))
SELECT 1 FROM t HAVING pg_read_file('x') = 'a'
SELECT 1 FROM t ORDER BY pg_read_file('x')
SELECT 1 FROM t ORDER BY a USING <, pg_read_file('x') DESC NULLS LAST
SELECT 1 LIMIT pg_read_file('x')
SELECT 1 OFFSET pg_read_file('x')
SELECT 1 ORDER BY 1 FETCH FIRST (pg_read_file('x')) ROWS WITH TIES
SELECT DISTINCT ON (pg_read_file('x')) 1
SELECT count(*) FILTER (WHERE pg_read_file('x') = 'a') FROM t
SELECT string_agg(a, b ORDER BY pg_read_file('x')) FROM t
SELECT percentile_cont(0.5) WITHIN GROUP (ORDER BY pg_read_file('x')) FROM t
SELECT sum(a) OVER (PARTITION BY pg_read_file('x')) FROM t
SELECT sum(a) OVER (ORDER BY pg_read_file('x')) FROM t
SELECT sum(a) OVER (ROWS BETWEEN pg_read_file('x') PRECEDING AND CURRENT ROW) FROM t
SELECT sum(a) OVER (RANGE BETWEEN CURRENT ROW AND pg_read_file('x') FOLLOWING) FROM t
SELECT sum(a) OVER w FROM t WINDOW w AS (PARTITION BY a ORDER BY pg_read_file('x'))
SELECT sum(a) OVER w FROM t WINDOW w AS (GROUPS pg_read_file('x') PRECEDING)
SELECT CASE pg_read_file('x') WHEN 'a' THEN 1 END
SELECT CASE WHEN pg_read_file('x') = 'a' THEN 1 END
SELECT CASE a WHEN 1 THEN pg_read_file('x') END
SELECT CASE WHEN a THEN 1 ELSE pg_read_file('x') END
SELECT COALESCE(NULL, pg_read_file('x'))
SELECT GREATEST('a', pg_read_file('x'))
SELECT NULLIF('a', pg_read_file('x'))
SELECT ARRAY[pg_read_file('x')]
SELECT ARRAY[[1], [pg_read_file('x')]]
SELECT ARRAY(SELECT pg_read_file('x'))
SELECT a[pg_read_file('x')] FROM t
SELECT a[1:pg_read_file('x')] FROM t
SELECT (pg_read_file('x')).a
SELECT ROW(1, pg_read_file('x'))
SELECT (1, (2, pg_read_file('x'))) = (1, 2)
SELECT pg_read_file('x')::int
SELECT CAST(pg_read_file('x') AS text)
SELECT CAST(1 AS numeric(pg_read_file('x')))
SELECT pg_read_file('x') COLLATE "C"
SELECT 'a' IN ('b', pg_read_file('x'))
SELECT 'a' BETWEEN 'b' AND pg_read_file('x')
SELECT 'a' LIKE 'b' ESCAPE pg_read_file('x')
SELECT 'a' ILIKE pg_read_file('x')
SELECT 'a' SIMILAR TO pg_read_file('x')
SELECT 'a' = ANY (ARRAY[pg_read_file('x')])
SELECT 'a' = ALL (SELECT pg_read_file('x'))
SELECT pg_read_file('x') IN (SELECT 1)
SELECT EXISTS (SELECT 1 WHERE pg_read_file('x') = 'a')
SELECT NOT pg_read_file('x')::bool AND true OR false
SELECT pg_read_file('x') IS TRUE
SELECT pg_read_file('x') IS DISTINCT FROM 'a'
SELECT pg_read_file('x') IS NORMALIZED
SELECT pg_read_file('x') IS JSON OBJECT
SELECT now() AT TIME ZONE pg_read_file('x')
SELECT extract(year FROM pg_read_file('x')::date)
SELECT overlay('a' PLACING pg_read_file('x') FROM 1)
SELECT position('a' IN pg_read_file('x'))
SELECT substring('a' FROM pg_read_file('x'))
SELECT substring('a' SIMILAR pg_read_file('x') ESCAPE '#')
SELECT trim(BOTH pg_read_file('x') FROM 'a')
SELECT (now(), now()) OVERLAPS (now(), pg_read_file('x'))
SELECT f(a => pg_read_file('x'))
SELECT f(VARIADIC ARRAY[pg_read_file('x')])
SELECT pg_catalog.pg_read_file('x')
SELECT xmlelement(name a, xmlattributes(pg_read_file('x') AS b), 'c')
SELECT xmlelement(name a, pg_read_file('x'))
SELECT xmlforest(pg_read_file('x') AS a)
SELECT xmlconcat(pg_read_file('x')::xml)
SELECT xmlparse(DOCUMENT pg_read_file('x'))
SELECT xmlpi(name a, pg_read_file('x'))
SELECT xmlroot(pg_read_file('x')::xml, VERSION NO VALUE)
SELECT xmlserialize(CONTENT pg_read_file('x')::xml AS text)
SELECT xmlexists('a' PASSING pg_read_file('x'))
SELECT 1 FROM XMLTABLE('a' PASSING pg_read_file('x') COLUMNS b text)
SELECT 1 FROM XMLTABLE(pg_read_file('x') PASSING '<a/>' COLUMNS b text)
SELECT 1 FROM XMLTABLE('a' PASSING '<a/>' COLUMNS b text PATH pg_read_file('x'))
SELECT 1 FROM XMLTABLE('a' PASSING '<a/>' COLUMNS b text DEFAULT pg_read_file('x'))
SELECT 1 FROM XMLTABLE(XMLNAMESPACES(pg_read_file('x') AS n), 'a' PASSING '<a/>' COLUMNS b text)
SELECT json_object('a': pg_read_file('x'))
SELECT json_object(pg_read_file('x') VALUE 1 ABSENT ON NULL)
SELECT json_array(1, pg_read_file('x'))
SELECT json_array(SELECT pg_read_file('x'))
SELECT json_objectagg('a': pg_read_file('x'))
SELECT json_arrayagg(pg_read_file('x') ORDER BY a) FROM t
SELECT json_arrayagg(a ORDER BY pg_read_file('x')) FROM t
SELECT json_arrayagg(a) FILTER (WHERE pg_read_file('x') = 'a') FROM t
SELECT json(pg_read_file('x'))
SELECT json_scalar(pg_read_file('x'))
SELECT json_serialize(pg_read_file('x'))
SELECT json_exists(pg_read_file('x'), '$')
SELECT json_value(a, '$' PASSING pg_read_file('x') AS b) FROM t
SELECT json_value(a, '$' DEFAULT pg_read_file('x') ON EMPTY) FROM t
SELECT json_query(a, '$' DEFAULT pg_read_file('x') ON ERROR) FROM t
SELECT json_query(a, pg_read_file('x')) FROM t
SELECT 1 FROM JSON_TABLE(pg_read_file('x'), '$' COLUMNS (a int))
SELECT 1 FROM JSON_TABLE('[]', '$' PASSING pg_read_file('x') AS b COLUMNS (a int))
SELECT 1 FROM JSON_TABLE('[]', '$' COLUMNS (a text DEFAULT pg_read_file('x') ON EMPTY))
SELECT 1 FROM JSON_TABLE('[]', '$' COLUMNS (NESTED PATH '$' COLUMNS (a text DEFAULT pg_read_file('x') ON ERROR)))
VALUES (1), (pg_read_file('x'))
VALUES (1, 2) ORDER BY pg_read_file('x')
SELECT 1 UNION SELECT 2 UNION SELECT pg_read_file('x')
SELECT pg_read_file('x') UNION SELECT 2 UNION SELECT 3
(SELECT 1 LIMIT pg_read_file('x')) EXCEPT (SELECT 2)
SELECT 1 UNION ALL SELECT 2 ORDER BY pg_read_file('x')
WITH c AS (SELECT pg_read_file('x')) SELECT 1
WITH RECURSIVE c AS (SELECT 1 UNION ALL SELECT pg_read_file('x') FROM c) SELECT 1 FROM c
WITH RECURSIVE c(a) AS (SELECT 1 UNION ALL SELECT 2) CYCLE a SET b TO f(pg_read_file('x')) 'y' DEFAULT 0 USING p SELECT 1 FROM c
WITH c AS MATERIALIZED (WITH d AS (SELECT pg_read_file('x')) SELECT 1 FROM d) SELECT 1
WITH c AS (DELETE FROM t RETURNING pg_read_file('x')) SELECT 1
SELECT 1 INTO t WHERE pg_read_file('x') = 'a'
SELECT 1 FROM (VALUES (pg_read_file('x'))) v
SELECT 1 FOR UPDATE LIMIT pg_read_file('x')
SELECT 1 + 2 + pg_read_file('x')::int + 3 + 4
SELECT pg_read_file('x')::int + 1 + 2 + 3
SELECT - pg_read_file('x')::int
SELECT 1 OPERATOR(pg_catalog.+) pg_read_file('x')::int
INSERT INTO t VALUES (pg_read_file('x'))
INSERT INTO t VALUES (1), (pg_read_file('x'))
INSERT INTO t SELECT pg_read_file('x')
INSERT INTO t (a[pg_read_file('x')]) VALUES (1)
INSERT INTO t VALUES (1) RETURNING pg_read_file('x')
INSERT INTO t VALUES (1) ON CONFLICT (lower(pg_read_file('x'))) DO NOTHING
INSERT INTO t VALUES (1) ON CONFLICT (a) WHERE pg_read_file('x') = 'a' DO NOTHING
INSERT INTO t VALUES (1) ON CONFLICT (a) DO UPDATE SET a = pg_read_file('x')
INSERT INTO t VALUES (1) ON CONFLICT (a) DO UPDATE SET a = 1 WHERE pg_read_file('x') = 'a'
INSERT INTO t VALUES (1) ON CONFLICT (a) DO UPDATE SET (a, b) = (SELECT 1, pg_read_file('x'))
WITH c AS (SELECT pg_read_file('x')) INSERT INTO t SELECT 1
UPDATE t SET a = pg_read_file('x')
UPDATE t SET (a, b) = (1, pg_read_file('x'))
UPDATE t SET (a, b) = (SELECT 1, pg_read_file('x'))
UPDATE t SET a[pg_read_file('x')] = 1
UPDATE t SET a = 1 FROM pg_read_file('x') WHERE true
UPDATE t SET a = 1 WHERE b = pg_read_file('x')
UPDATE t SET a = 1 RETURNING pg_read_file('x')
UPDATE t SET a = 1 RETURNING WITH (OLD AS o) pg_read_file('x'), o.a
WITH c AS (SELECT pg_read_file('x')) UPDATE t SET a = 1
DELETE FROM t WHERE a = pg_read_file('x')
DELETE FROM t USING pg_read_file('x') f WHERE true
DELETE FROM t RETURNING pg_read_file('x')
WITH c AS (SELECT pg_read_file('x')) DELETE FROM t
MERGE INTO t USING u ON t.a = pg_read_file('x') WHEN MATCHED THEN DELETE
MERGE INTO t USING pg_read_file('x') f ON true WHEN MATCHED THEN DELETE
MERGE INTO t USING u ON true WHEN MATCHED AND pg_read_file('x') = 'a' THEN DELETE
MERGE INTO t USING u ON true WHEN MATCHED THEN UPDATE SET a = pg_read_file('x')
MERGE INTO t USING u ON true WHEN NOT MATCHED THEN INSERT (a) VALUES (pg_read_file('x'))
MERGE INTO t USING u ON true WHEN NOT MATCHED BY SOURCE AND pg_read_file('x') = 'a' THEN DELETE
MERGE INTO t USING u ON true WHEN MATCHED THEN DO NOTHING RETURNING pg_read_file('x')
WITH c AS (SELECT pg_read_file('x')) MERGE INTO t USING c ON true WHEN MATCHED THEN DELETE
COPY (SELECT pg_read_file('x')) TO STDOUT
COPY t FROM STDIN WHERE pg_read_file('x') = 'a'
COPY (INSERT INTO t VALUES (1) RETURNING pg_read_file('x')) TO STDOUT
EXPLAIN SELECT pg_read_file('x')
EXPLAIN (ANALYZE) UPDATE t SET a = pg_read_file('x')
EXPLAIN ANALYZE EXECUTE p(pg_read_file('x'))
EXPLAIN CREATE TABLE n AS SELECT pg_read_file('x')
EXPLAIN DECLARE c CURSOR FOR SELECT pg_read_file('x')
PREPARE p AS SELECT pg_read_file('x')
PREPARE p AS INSERT INTO t VALUES (pg_read_file('x'))
EXECUTE p(pg_read_file('x'))
DECLARE c CURSOR FOR SELECT pg_read_file('x')
DECLARE c CURSOR WITH HOLD FOR VALUES (pg_read_file('x'))
CALL p(pg_read_file('x'))
CALL pg_read_file('x')
CREATE TABLE n AS SELECT pg_read_file('x')
CREATE TABLE n AS EXECUTE p(pg_read_file('x'))
CREATE TABLE n AS VALUES (pg_read_file('x'))
CREATE MATERIALIZED VIEW n AS SELECT pg_read_file('x')
CREATE VIEW n AS SELECT pg_read_file('x')
CREATE RECURSIVE VIEW n (a) AS SELECT pg_read_file('x')
CREATE TABLE n (a text DEFAULT pg_read_file('x'))
CREATE TABLE n (a text CHECK (a <> pg_read_file('x')))
CREATE TABLE n (a text, CHECK (a <> pg_read_file('x')))
CREATE TABLE n (a text GENERATED ALWAYS AS (pg_read_file('x')) STORED)
CREATE TABLE n (a text, EXCLUDE USING gist (pg_read_file('x') WITH =))
CREATE TABLE n (a text, EXCLUDE USING gist (a WITH =) WHERE (pg_read_file('x') = 'a'))
CREATE TABLE n (a text) PARTITION BY RANGE (pg_read_file('x'))
CREATE TABLE n PARTITION OF t FOR VALUES IN (pg_read_file('x'))
CREATE TABLE n PARTITION OF t FOR VALUES FROM (pg_read_file('x')) TO (MAXVALUE)
CREATE FOREIGN TABLE n (a text DEFAULT pg_read_file('x')) SERVER s
CREATE INDEX ON t (pg_read_file('x'))
CREATE INDEX ON t ((a || pg_read_file('x')))
CREATE INDEX ON t (a) WHERE pg_read_file('x') = 'a'
CREATE STATISTICS s ON (pg_read_file('x')), a FROM t
CREATE DOMAIN d AS text DEFAULT pg_read_file('x')
CREATE DOMAIN d AS text CHECK (VALUE <> pg_read_file('x'))
CREATE FUNCTION f(a text DEFAULT pg_read_file('x')) RETURNS text LANGUAGE sql AS 'SELECT 1'
CREATE FUNCTION f() RETURNS text RETURN pg_read_file('x')
CREATE FUNCTION f() RETURNS text BEGIN ATOMIC SELECT 1; SELECT pg_read_file('x'); END
CREATE PROCEDURE f() BEGIN ATOMIC INSERT INTO t VALUES (pg_read_file('x')); END
CREATE TRIGGER g BEFORE INSERT ON t FOR EACH ROW WHEN (pg_read_file('x') = 'a') EXECUTE FUNCTION h()
CREATE TRIGGER g BEFORE INSERT ON t EXECUTE FUNCTION pg_read_file('x')
CREATE EVENT TRIGGER g ON ddl_command_start EXECUTE FUNCTION pg_read_file()
CREATE RULE r AS ON INSERT TO t DO ALSO SELECT pg_read_file('x')
CREATE RULE r AS ON INSERT TO t WHERE pg_read_file('x') = 'a' DO NOTHING
CREATE RULE r AS ON INSERT TO t DO INSTEAD (DELETE FROM u; UPDATE u SET a = pg_read_file('x'))
CREATE POLICY p ON t USING (pg_read_file('x') = 'a')
CREATE POLICY p ON t WITH CHECK (pg_read_file('x') = 'a')
CREATE SCHEMA s CREATE TABLE n (a text DEFAULT pg_read_file('x'))
CREATE SCHEMA s CREATE VIEW n AS SELECT pg_read_file('x')
CREATE PUBLICATION p FOR TABLE t WHERE (pg_read_file('x') = 'a')
ALTER TABLE t ADD COLUMN a text DEFAULT pg_read_file('x')
ALTER TABLE t ALTER COLUMN a SET DEFAULT pg_read_file('x')
ALTER TABLE t ALTER COLUMN a SET EXPRESSION AS (pg_read_file('x'))
ALTER TABLE t ALTER COLUMN a TYPE text USING pg_read_file('x')
ALTER TABLE t ADD CHECK (pg_read_file('x') = 'a')
ALTER TABLE t ATTACH PARTITION u FOR VALUES IN (pg_read_file('x'))
ALTER DOMAIN d SET DEFAULT pg_read_file('x')
ALTER DOMAIN d ADD CHECK (VALUE = pg_read_file('x'))
ALTER POLICY p ON t USING (pg_read_file('x') = 'a')
ALTER PUBLICATION p ADD TABLE t WHERE (pg_read_file('x') = 'a')
SELECT f(pg_read_file('x')) 'y'
