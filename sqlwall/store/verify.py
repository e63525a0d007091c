"""Reads the audit record back: walks the chains to find what was altered, taken out, moved or cut, and exports them.

Everything streams; memory grows with the number of writers, not of records.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum
from typing import Final, TextIO

import sqlalchemy as sa
from sqlalchemy import Connection, Engine

from sqlwall.store.chain import FIELDS, NO_HASH, Head, StoredRecord, digest
from sqlwall.store.database import reading
from sqlwall.store.schema import AUDIT, HEADS
from sqlwall.store.stamp import format_time
