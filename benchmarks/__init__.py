"""How fast, how late, how large: the measurements behind the figures in benchmarks/README.md."""
