"""Where a ruleset's text comes from: a shipped name, or a path."""

from __future__ import annotations

from pathlib import Path

import pytest

from sqlwall.cli.rulesets import find_ruleset, shipped_names
from sqlwall.errors import ConfigError
from sqlwall.rules.loader import load


def test_the_shipped_rulesets_are_found_by_name() -> None:
    assert {"agent-safe", "read-only", "observe"} <= set(shipped_names())
    for name in shipped_names():
        text, file = find_ruleset(name)
        assert load(text, file).name == name


def test_a_path_is_read_as_it_is(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("hello")
    assert find_ruleset(str(file)) == ("hello", str(file))


def test_a_name_is_never_a_file_of_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "agent-safe").write_text("evil")
    monkeypatch.chdir(tmp_path)
    assert find_ruleset("agent-safe")[0] != "evil"


def test_a_wrong_name_gets_the_nearest_one() -> None:
    with pytest.raises(ConfigError, match="did you mean 'agent-safe'"):
        find_ruleset("agent-saf")


@pytest.mark.parametrize("name", ["missing.yaml", "", "."])
def test_a_file_that_cannot_be_read_is_one_clear_line(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as caught:
        find_ruleset(name)
    assert len(str(caught.value).splitlines()) == 1


def test_a_file_that_is_not_utf_8_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "r.yaml"
    file.write_bytes(b"name: \xff")
    with pytest.raises(ConfigError, match="not UTF-8 at byte 6"):
        find_ruleset(str(file))
