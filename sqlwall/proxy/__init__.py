"""The asyncio shell: listen, TLS, authenticate, relay, gate, workers."""
