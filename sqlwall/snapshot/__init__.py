"""What a transaction changed, measured by the server's own witnesses, and whether it is covered. Pure."""
