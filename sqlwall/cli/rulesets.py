"""Finds a ruleset's file by path or by the name of a shipped one. Reads it; what it means is the loader's business."""

from __future__ import annotations

from pathlib import Path

from sqlwall.errors import ConfigError, Problem

# The supervisor knows this module and not that room, which takes long to load.
# ruff: noqa: PLC0415

_PACKAGE = Path(__file__).resolve().parent.parent

#: Where shipped rulesets are: inside an installed package, else in the source tree.
SHIPPED = (_PACKAGE / "_rulesets", _PACKAGE.parent / "rulesets")


def find_ruleset(name_or_path: str) -> tuple[str, str]:
    """The text and the file's name; ConfigError if there is none.

    A word without slash and suffix is the name of a shipped ruleset, whatever files the working directory has: a file
    called ``agent-safe`` that somebody dropped there must not become the policy.
    """
    if _is_name(name_or_path):
        return _shipped(name_or_path)
    return _read(Path(name_or_path).expanduser())


def shipped_names() -> tuple[str, ...]:
    """The names of all shipped rulesets, sorted."""
    folder = next((folder for folder in SHIPPED if folder.is_dir()), None)
    return tuple(sorted(file.stem for file in folder.glob("*.yaml"))) if folder else ()


def _is_name(name_or_path: str) -> bool:
    return all(character.isalnum() or character in "-_" for character in name_or_path) and bool(name_or_path)


def _shipped(name: str) -> tuple[str, str]:
    for folder in SHIPPED:
        file = folder / f"{name}.yaml"
        if file.is_file():
            return _read(file)
    from sqlwall.rules.shapes import nearest

    names = shipped_names()
    known = f"; shipped are {', '.join(names)}" if names else ""
    hint = nearest(name, names) or "."
    raise ConfigError(Problem(f"no ruleset is called {name!r}{known}{hint} A file is named by its path."))


def _read(file: Path) -> tuple[str, str]:
    from sqlwall.rules.loader import MAX_BYTES

    try:
        if file.stat().st_size > MAX_BYTES:
            raise ConfigError(Problem(f"larger than {MAX_BYTES} bytes", str(file)))
        return file.read_text(encoding="utf-8"), str(file)
    except UnicodeDecodeError as error:
        raise ConfigError(Problem(f"not UTF-8 at byte {error.start}", str(file))) from error
    except OSError as error:
        raise ConfigError(Problem(f"cannot be read: {error.strerror or error}", str(file))) from error
