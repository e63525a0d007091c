"""Entry point of ``python -m sqlwall`` and the ``sqlwall`` command."""

from __future__ import annotations


def main() -> None:
    """Run the command line."""
    from sqlwall.cli.main import app  # noqa: PLC0415  -- a bare import of the package must stay cheap

    app()


if __name__ == "__main__":
    main()
