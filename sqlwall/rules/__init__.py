"""Rulesets: facts about a statement in, a verdict out. Pure; reads no file and knows no clock."""
