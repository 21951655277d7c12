"""tda against its peers, each in a fresh process of every block: see `benchmarks.peers.__main__`."""
