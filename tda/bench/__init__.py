"""The bench: measure one case, run a matrix of them interleaved, append records as they come."""
