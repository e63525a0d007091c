"""sqlwall: a statement firewall for PostgreSQL."""

__version__ = "0.1.0"
