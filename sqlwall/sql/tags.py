"""The command tag of a statement, as CreateCommandTag() in tcop/utility.c has it: words, never a decision."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from sqlwall.sql.objects import object_kind
from sqlwall.sql.shapes import Json

#: Tags that are not the node's name in words.
_TAGS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "CopyStmt": "COPY",
        "ClosePortalStmt": "CLOSE CURSOR",
        "VariableShowStmt": "SHOW",
        "ConstraintsSetStmt": "SET CONSTRAINTS",
        "CreateStmt": "CREATE TABLE",
        "ViewStmt": "CREATE VIEW",
        "IndexStmt": "CREATE INDEX",
        "RuleStmt": "CREATE RULE",
        "CreateSeqStmt": "CREATE SEQUENCE",
        "CreateTrigStmt": "CREATE TRIGGER",
        "CreateEventTrigStmt": "CREATE EVENT TRIGGER",
        "CreatePLangStmt": "CREATE LANGUAGE",
        "CreateAmStmt": "CREATE ACCESS METHOD",
        "CreateOpClassStmt": "CREATE OPERATOR CLASS",
        "CreateOpFamilyStmt": "CREATE OPERATOR FAMILY",
        "CreateFdwStmt": "CREATE FOREIGN DATA WRAPPER",
        "CreateForeignServerStmt": "CREATE SERVER",
        "CreateStatsStmt": "CREATE STATISTICS",
        "CreateTableSpaceStmt": "CREATE TABLESPACE",
        "CreateEnumStmt": "CREATE TYPE",
        "CreateRangeStmt": "CREATE TYPE",
        "CompositeTypeStmt": "CREATE TYPE",
        "CreatedbStmt": "CREATE DATABASE",
        "DropdbStmt": "DROP DATABASE",
        "DropTableSpaceStmt": "DROP TABLESPACE",
        "LockStmt": "LOCK TABLE",
        "TruncateStmt": "TRUNCATE TABLE",
        "CheckPointStmt": "CHECKPOINT",
        "AlterSeqStmt": "ALTER SEQUENCE",
        "AlterStatsStmt": "ALTER STATISTICS",
        "AlterEnumStmt": "ALTER TYPE",
        "AlterFdwStmt": "ALTER FOREIGN DATA WRAPPER",
        "AlterForeignServerStmt": "ALTER SERVER",
        "AlterEventTrigStmt": "ALTER EVENT TRIGGER",
        "AlterDatabaseSetStmt": "ALTER DATABASE",
        "AlterDatabaseRefreshCollStmt": "ALTER DATABASE",
        "AlterExtensionContentsStmt": "ALTER EXTENSION",
        "AlterOpFamilyStmt": "ALTER OPERATOR FAMILY",
        "AlterRoleSetStmt": "ALTER ROLE",
        "AlterTSConfigurationStmt": "ALTER TEXT SEARCH CONFIGURATION",
        "AlterTSDictionaryStmt": "ALTER TEXT SEARCH DICTIONARY",
        "AlterTableMoveAllStmt": "ALTER TABLE",
        "AlterTableSpaceOptionsStmt": "ALTER TABLESPACE",
        "SecLabelStmt": "SECURITY LABEL",
    }
)
_TRANSACTION: Final[Mapping[str, str]] = MappingProxyType(
    {
        "TRANS_STMT_BEGIN": "BEGIN",
        "TRANS_STMT_START": "START TRANSACTION",
        "TRANS_STMT_COMMIT": "COMMIT",
        "TRANS_STMT_ROLLBACK": "ROLLBACK",
        "TRANS_STMT_SAVEPOINT": "SAVEPOINT",
        "TRANS_STMT_RELEASE": "RELEASE",
        "TRANS_STMT_ROLLBACK_TO": "ROLLBACK",
        "TRANS_STMT_PREPARE": "PREPARE TRANSACTION",
        "TRANS_STMT_COMMIT_PREPARED": "COMMIT PREPARED",
        "TRANS_STMT_ROLLBACK_PREPARED": "ROLLBACK PREPARED",
    }
)
#: Node type → verb and the field that has the kind of object.
_BY_KIND: Final[Mapping[str, tuple[str, str]]] = MappingProxyType(
    {
        "DropStmt": ("DROP", "removeType"),
        "DefineStmt": ("CREATE", "kind"),
        "AlterTableStmt": ("ALTER", "objtype"),
        "AlterFunctionStmt": ("ALTER", "objtype"),
        "AlterObjectDependsStmt": ("ALTER", "objectType"),
        "AlterObjectSchemaStmt": ("ALTER", "objectType"),
        "AlterOwnerStmt": ("ALTER", "objectType"),
        "RenameStmt": ("ALTER", "renameType"),
    }
)
#: Parts of a table, whose change is a change of the table.
_OF_TABLE: Final = frozenset({"column", "constraint"})


def command_tag(kind: str, body: Json) -> str:
    """The tag of a statement node."""
    verb, field = _BY_KIND.get(kind, ("", ""))
    if verb:
        found = object_kind(body.get(field, ""))
        return f"{verb} {'table' if found in _OF_TABLE else found}".upper()
    match kind:
        case "SelectStmt":
            return "SELECT INTO" if "intoClause" in body else "SELECT"
        case "TransactionStmt":
            return _TRANSACTION.get(body.get("kind", ""), "TRANSACTION")
        case "VariableSetStmt":
            return "RESET" if "RESET" in body.get("kind", "") else "SET"
        case "VacuumStmt":
            return "VACUUM" if body.get("is_vacuumcmd") else "ANALYZE"
        case "FetchStmt":
            return "MOVE" if body.get("ismove") else "FETCH"
        case "GrantStmt":
            return "GRANT" if body.get("is_grant") else "REVOKE"
        case "GrantRoleStmt":
            return "GRANT ROLE" if body.get("is_grant") else "REVOKE ROLE"
        case "DeallocateStmt":
            return "DEALLOCATE" if body.get("name") else "DEALLOCATE ALL"
        case "DiscardStmt":
            return str(body.get("target", "DISCARD")).replace("_", " ")
        case "CreateTableAsStmt" if body.get("objtype") == "OBJECT_MATVIEW":
            return "CREATE MATERIALIZED VIEW"
        case "RefreshMatViewStmt":
            return "REFRESH MATERIALIZED VIEW"
        case "CreateFunctionStmt" if body.get("is_procedure"):
            return "CREATE PROCEDURE"
        case _:
            return _TAGS.get(kind) or _spelled(kind)


def _spelled(kind: str) -> str:
    """CreatePolicyStmt as CREATE POLICY."""
    words = "".join(f" {letter}" if letter.isupper() else letter for letter in kind.removesuffix("Stmt"))
    return words.strip().upper()
