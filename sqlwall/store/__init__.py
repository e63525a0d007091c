"""Durable state: agents and the audit chain."""
