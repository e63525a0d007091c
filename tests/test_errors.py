"""The error tree: every problem is reported with its place."""

from sqlwall.errors import ConfigError, Problem, SqlwallError


def test_a_config_error_lists_every_problem_with_its_place() -> None:
    error = ConfigError(
        Problem("unknown key 'modee', did you mean 'mode'?", "rules.yaml", 3, 1), "port is not a number"
    )
    assert isinstance(error, SqlwallError)
    assert str(error) == "rules.yaml:3:1: unknown key 'modee', did you mean 'mode'?\nport is not a number"
