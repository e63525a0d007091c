"""SQL text to facts: what a statement would do. The only room that knows the parser."""
