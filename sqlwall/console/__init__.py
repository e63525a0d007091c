"""HTTP for people and machines: metrics and health."""
