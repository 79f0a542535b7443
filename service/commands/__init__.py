"""The commands of `lan-fer`, one module each: `add_parser` describes it, `run` does it."""
