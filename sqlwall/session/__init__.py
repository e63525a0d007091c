"""One conversation between a client and a server, sans-I/O: messages and verdicts in, bytes out."""
