"""Reads the audit record back: walks the chains to find what was altered, taken out, moved or cut, and exports them.

Everything streams; memory grows with the number of writers, not of records.
"""

from __future__ import annotations
