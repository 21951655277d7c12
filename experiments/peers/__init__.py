"""tda against its peers, each in a fresh process of every block: see `experiments.peers.__main__`."""
