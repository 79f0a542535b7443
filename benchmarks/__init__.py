"""What README's figures come from: one command each, see benchmarks/README.md."""
