"""Measurements against peers, in one run on one machine. Nothing here is asserted in a test."""
