"""The asv suite: what is tracked of every commit of this repository."""
