"""The SQLSTATEs that sqlwall raises or looks at, under the names of PostgreSQL's errcodes.txt (manual, appendix A).

A table without logic. Which of them a refusal may use is decided elsewhere: drivers' pools drop connections on
classes 08 and 57P0x and retry on class 40, so policy never speaks in those.
"""

from __future__ import annotations

from typing import Final

SUCCESSFUL_COMPLETION: Final = "00000"
WARNING: Final = "01000"

# Class 08: the connection itself; it ends with these.
CONNECTION_EXCEPTION: Final = "08000"
CONNECTION_DOES_NOT_EXIST: Final = "08003"
SQLSERVER_REJECTED_ESTABLISHMENT: Final = "08004"
CONNECTION_FAILURE: Final = "08006"
PROTOCOL_VIOLATION: Final = "08P01"

FEATURE_NOT_SUPPORTED: Final = "0A000"

# Class 22: data. A text that is not valid in the client's encoding never reaches the parser.
INVALID_PARAMETER_VALUE: Final = "22023"
CHARACTER_NOT_IN_REPERTOIRE: Final = "22021"
UNTRANSLATABLE_CHARACTER: Final = "22P05"

# Class 25: the transaction is in the wrong state for the statement.
ACTIVE_SQL_TRANSACTION: Final = "25001"
READ_ONLY_SQL_TRANSACTION: Final = "25006"
NO_ACTIVE_SQL_TRANSACTION: Final = "25P01"
IN_FAILED_SQL_TRANSACTION: Final = "25P02"
IDLE_IN_TRANSACTION_SESSION_TIMEOUT: Final = "25P03"

# Class 26, 28, 34, 3D: names that do not exist, and people who may not come in.
INVALID_SQL_STATEMENT_NAME: Final = "26000"
INVALID_AUTHORIZATION_SPECIFICATION: Final = "28000"
INVALID_PASSWORD: Final = "28P01"  # noqa: S105  (the name of a condition)
INVALID_CURSOR_NAME: Final = "34000"
INVALID_CATALOG_NAME: Final = "3D000"
SAVEPOINT_EXCEPTION: Final = "3B000"

# Class 40: the statement may be tried again, and pools do so by themselves.
TRANSACTION_ROLLBACK: Final = "40000"
SERIALIZATION_FAILURE: Final = "40001"
DEADLOCK_DETECTED: Final = "40P01"

# Class 42: what the statement says. INSUFFICIENT_PRIVILEGE is the answer of a rule.
SYNTAX_ERROR: Final = "42601"
INSUFFICIENT_PRIVILEGE: Final = "42501"
DUPLICATE_CURSOR: Final = "42P03"
DUPLICATE_PREPARED_STATEMENT: Final = "42P05"
UNDEFINED_TABLE: Final = "42P01"
UNDEFINED_OBJECT: Final = "42704"
RESERVED_NAME: Final = "42939"

# Class 53 and 54: too much of something.
INSUFFICIENT_RESOURCES: Final = "53000"
OUT_OF_MEMORY: Final = "53200"
TOO_MANY_CONNECTIONS: Final = "53300"
CONFIGURATION_LIMIT_EXCEEDED: Final = "53400"
PROGRAM_LIMIT_EXCEEDED: Final = "54000"
STATEMENT_TOO_COMPLEX: Final = "54001"

OBJECT_NOT_IN_PREREQUISITE_STATE: Final = "55000"
LOCK_NOT_AVAILABLE: Final = "55P03"

# Class 57: an operator, or a timeout in an operator's name, stepped in.
QUERY_CANCELED: Final = "57014"
ADMIN_SHUTDOWN: Final = "57P01"
CRASH_SHUTDOWN: Final = "57P02"
CANNOT_CONNECT_NOW: Final = "57P03"
IDLE_SESSION_TIMEOUT: Final = "57P05"

# Class 58 and XX: our own failure. The client learns that it is closed, not why.
SYSTEM_ERROR: Final = "58000"
INTERNAL_ERROR: Final = "XX000"
