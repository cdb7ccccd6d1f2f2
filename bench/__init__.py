"""Tables and benchmarks; see bench/README.md."""
