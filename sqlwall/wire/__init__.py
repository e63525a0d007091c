"""PostgreSQL's frontend/backend protocol 3.0 and 3.2, sans-I/O: bytes in, messages out. Knows no SQL."""
