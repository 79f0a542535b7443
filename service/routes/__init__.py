"""HTTP routes: parse, call, reply."""
