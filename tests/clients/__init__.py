"""The clients' own test suites, direct and through the wall. Not collected by pytest: `python -m tests.clients` runs them."""
