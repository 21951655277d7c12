"""What is profiled of every commit: a small fixed set of cases (`cases.toml`), captured as installed builds."""
