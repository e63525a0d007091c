"""The catalog's questions to the server. Data without logic; every one is read-only and sees one database.

What sessions keep in temporary schemas is left out: it belongs to one session, and would change the picture all the
time.
"""

from __future__ import annotations

from typing import Final, LiteralString

#: One row that differs whenever anything below could: how many rows each catalog has, and which. xmin survives VACUUM.
#: The schemas that we may use are in it by name, since memberships and ownership grant that too.
FINGERPRINT: Final[LiteralString] = """
SELECT (SELECT pg_catalog.concat(count(*), ':', sum(pg_catalog.hashtext(oid::text || '/' || xmin::text)))
          FROM pg_catalog.pg_class WHERE relkind IN ('r', 'p', 'v', 'm', 'S', 'f') AND relpersistence <> 't'),
       (SELECT pg_catalog.concat(count(*), ':', sum(pg_catalog.hashtext(oid::text || '/' || xmin::text)))
          FROM pg_catalog.pg_proc),
       (SELECT pg_catalog.concat(count(*), ':', sum(pg_catalog.hashtext(oid::text || '/' || xmin::text)))
          FROM pg_catalog.pg_operator),
       (SELECT pg_catalog.concat(count(*), ':', sum(pg_catalog.hashtext(t.oid::text || '/' || t.xmin::text)))
          FROM pg_catalog.pg_type t JOIN pg_catalog.pg_namespace n ON n.oid = t.typnamespace
         WHERE t.oid >= 16384 AND n.nspname !~ '^pg_temp_'),
       (SELECT pg_catalog.concat(count(*), ':', sum(pg_catalog.hashtext(a.attrelid::text || '/' || a.xmin::text)))
          FROM pg_catalog.pg_attribute a JOIN pg_catalog.pg_class c ON c.oid = a.attrelid
         WHERE a.atttypid >= 16384 AND a.attnum > 0 AND c.relpersistence <> 't'),
       (SELECT pg_catalog.concat(count(*), ':', sum(pg_catalog.hashtext(oid::text || '/' || xmin::text)))
          FROM pg_catalog.pg_rewrite WHERE oid >= 16384),
       (SELECT pg_catalog.concat(count(*), ':', sum(pg_catalog.hashtext(oid::text || '/' || xmin::text)))
          FROM pg_catalog.pg_namespace WHERE nspname !~ '^pg_(toast_)?temp_'),
       (SELECT pg_catalog.concat(count(*), ':', sum(pg_catalog.hashtext(oid::text || '/' || xmin::text)))
          FROM pg_catalog.pg_cast),
       (SELECT pg_catalog.concat(count(*), ':', sum(pg_catalog.hashtext(oid::text || '/' || xmin::text)))
          FROM pg_catalog.pg_constraint WHERE contypid <> 0),
       (SELECT pg_catalog.concat(count(*), ':', sum(pg_catalog.hashtext(inhrelid::text || '/' || inhparent::text)))
          FROM pg_catalog.pg_inherits),
       (SELECT pg_catalog.concat(count(*), ':',
                   sum(pg_catalog.hashtext(classid::text || '/' || objid::text || '/' || refobjid::text)))
          FROM pg_catalog.pg_depend WHERE deptype = 'e'),
       (SELECT pg_catalog.concat(current_user, ':', pg_catalog.hashtext(
                   pg_catalog.string_agg(nspname, '/' ORDER BY nspname)))
          FROM pg_catalog.pg_namespace
         WHERE nspname !~ '^pg_(toast_)?temp_' AND pg_catalog.has_schema_privilege(oid, 'USAGE'))
"""

#: Whom the side connection is, and the schemas that it may not use: the server passes over these in a search_path.
SCHEMAS: Final[LiteralString] = """
SELECT current_user::text,
       ARRAY(SELECT nspname::text FROM pg_catalog.pg_namespace
             WHERE NOT pg_catalog.has_schema_privilege(oid, 'USAGE') AND nspname !~ '^pg_(toast_)?temp_')
"""

RELATIONS: Final[LiteralString] = """
SELECT c.oid::int8, n.nspname, c.relname, c.relkind::text, c.reltype::int8, c.reloftype::int8
FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'p', 'v', 'm', 'S', 'f') AND c.relpersistence <> 't' AND n.nspname <> 'pg_toast'
"""

#: Who reads whom: views and materialized views what their query names.
READERS: Final[LiteralString] = """
SELECT DISTINCT r.ev_class::int8, d.refobjid::int8
FROM pg_catalog.pg_rewrite r
JOIN pg_catalog.pg_depend d ON d.classid = 'pg_catalog.pg_rewrite'::regclass AND d.objid = r.oid
WHERE d.refclassid = 'pg_catalog.pg_class'::regclass AND d.refobjid <> r.ev_class AND r.ev_type = '1'
"""

#: Parents and their children, by partitioning or inheritance: reading the parent reads the child.
CHILDREN: Final[LiteralString] = "SELECT inhparent::int8, inhrelid::int8 FROM pg_catalog.pg_inherits"

#: The functions that a view's query calls, by name or through operators. PostgreSQL keeps no dependency on its own
#: functions, so they are read from the stored tree (nodes/outfuncs.c), where each call names its function's oid.
VIEW_CALLS: Final[LiteralString] = """
SELECT called.view::int8, n.nspname, p.proname, p.pronargs, p.provolatile = 'v', p.oid < 16384
FROM (SELECT DISTINCT r.ev_class AS view, found.match[1]::oid AS function
      FROM pg_catalog.pg_rewrite r,
           pg_catalog.regexp_matches(r.ev_action::text, ':(?:funcid|opfuncid|aggfnoid|winfnoid) ([0-9]+)', 'g')
               AS found(match)
      WHERE r.ev_class >= 16384 AND r.ev_type = '1') called
JOIN pg_catalog.pg_proc p ON p.oid = called.function
JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace
"""

#: Functions: the arguments a call may leave out and those it may repeat, whether they have names, and the types that
#: a call may bring into being.
FUNCTIONS: Final[LiteralString] = """
SELECT n.nspname, p.proname, e.extname, p.provolatile <> 'v' AND l.lanname IN ('c', 'internal'), p.oid < 16384,
       p.pronargs - p.pronargdefaults, CASE WHEN p.provariadic <> 0 THEN 100 ELSE p.pronargs END,
       p.proargtypes::int8[], p.proargnames IS NOT NULL OR p.provariadic <> 0,
       CASE WHEN p.oid >= 16384 THEN p.prorettype::int8 || COALESCE(p.proallargtypes::int8[], '{}') ELSE '{}' END
FROM pg_catalog.pg_proc p JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace
JOIN pg_catalog.pg_language l ON l.oid = p.prolang
LEFT JOIN pg_catalog.pg_depend d ON d.classid = 'pg_catalog.pg_proc'::regclass AND d.objid = p.oid
     AND d.deptype = 'e' AND d.refclassid = 'pg_catalog.pg_extension'::regclass
LEFT JOIN pg_catalog.pg_extension e ON e.oid = d.refobjid
"""

#: Operators of users, and PostgreSQL's own of the same names: what a call chooses between.
OPERATORS: Final[LiteralString] = """
SELECT n.nspname, o.oprname, e.extname, p.provolatile <> 'v' AND l.lanname IN ('c', 'internal'), o.oid < 16384,
       0, 100, ARRAY[o.oprleft, o.oprright]::int8[], false,
       CASE WHEN o.oid >= 16384 THEN ARRAY[o.oprresult]::int8[] ELSE '{}' END
FROM pg_catalog.pg_operator o JOIN pg_catalog.pg_namespace n ON n.oid = o.oprnamespace
JOIN pg_catalog.pg_proc p ON p.oid = o.oprcode JOIN pg_catalog.pg_language l ON l.oid = p.prolang
LEFT JOIN pg_catalog.pg_depend d ON d.classid = 'pg_catalog.pg_operator'::regclass AND d.objid = o.oid
     AND d.deptype = 'e' AND d.refclassid = 'pg_catalog.pg_extension'::regclass
LEFT JOIN pg_catalog.pg_extension e ON e.oid = d.refobjid
WHERE o.oprname IN (SELECT u.oprname FROM pg_catalog.pg_operator u WHERE u.oid >= 16384)
"""

#: The functions that a domain's checks and default call, and whether they name another user's type.
TYPE_CALLS: Final[LiteralString] = """
SELECT DISTINCT found.type::int8, p.proname, p.pronargs, p.oid < 16384
FROM (SELECT k.contypid AS type, k.conbin::text AS tree FROM pg_catalog.pg_constraint k WHERE k.contypid <> 0
      UNION ALL SELECT t.oid, t.typdefaultbin::text FROM pg_catalog.pg_type t WHERE t.typdefaultbin IS NOT NULL
     ) found,
     pg_catalog.regexp_matches(found.tree, ':(?:funcid|opfuncid|aggfnoid|winfnoid) ([0-9]+)', 'g') AS called(match)
JOIN pg_catalog.pg_proc p ON p.oid = called.match[1]::oid
UNION ALL
SELECT k.contypid::int8, '', 0, false FROM pg_catalog.pg_constraint k
JOIN pg_catalog.pg_depend d ON d.classid = 'pg_catalog.pg_constraint'::regclass AND d.objid = k.oid
WHERE d.refclassid = 'pg_catalog.pg_type'::regclass AND d.refobjid <> k.contypid AND k.contypid <> 0
"""

#: Types of users. `runs_code`: reading a value of it calls a user's function: its input function, a cast to it, what a
#: range needs to compare and to normalise. `is_closed`: no value or literal becomes one unless it must: no domain, no
#: row type, nobody casts to it implicitly, and it is never the preferred choice.
TYPES: Final[LiteralString] = """
SELECT t.oid::int8, n.nspname, t.typname, e.extname,
       (t.typtype = 'b' AND t.typelem = 0)
       OR EXISTS (SELECT FROM pg_catalog.pg_cast s WHERE s.casttarget = t.oid AND s.castfunc >= 16384)
       OR COALESCE(r.rngcanonical >= 16384 OR r.rngsubdiff >= 16384 OR r.rngsubopc >= 16384, false)
           AS runs_code,
       t.typtype IN ('b', 'e', 'r', 'm') AND NOT t.typispreferred
       AND NOT EXISTS (SELECT FROM pg_catalog.pg_cast s WHERE s.casttarget = t.oid AND s.castcontext = 'i')
           AS is_closed,
       t.typtype = 'c' AS is_composite, t.typcategory = 'S' AS is_string,
       CASE WHEN t.typcategory = 'A' THEN t.typelem ELSE 0 END::int8,
       ARRAY[t.typelem, t.typbasetype, COALESCE(r.rngsubtype, 0), COALESCE(r.rngtypid, 0)]::int8[]
FROM pg_catalog.pg_type t JOIN pg_catalog.pg_namespace n ON n.oid = t.typnamespace
LEFT JOIN pg_catalog.pg_range r ON r.rngtypid = t.oid OR r.rngmultitypid = t.oid
LEFT JOIN pg_catalog.pg_depend d ON d.classid = 'pg_catalog.pg_type'::regclass AND d.objid = t.oid
     AND d.deptype = 'e' AND d.refclassid = 'pg_catalog.pg_extension'::regclass
LEFT JOIN pg_catalog.pg_extension e ON e.oid = d.refobjid
WHERE t.oid >= 16384 AND n.nspname !~ '^pg_temp_'
"""

#: The users' types among a relation's columns, by the relation's own row type.
COLUMN_TYPES: Final[LiteralString] = """
SELECT c.reltype::int8, pg_catalog.array_agg(DISTINCT a.atttypid)::int8[]
FROM pg_catalog.pg_attribute a JOIN pg_catalog.pg_class c ON c.oid = a.attrelid
WHERE a.attnum > 0 AND a.atttypid >= 16384 AND c.reltype <> 0 AND c.relpersistence <> 't'
  AND c.relkind IN ('r', 'p', 'v', 'm', 'f', 'c') GROUP BY 1
"""
