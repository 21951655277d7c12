"""The sweep: the matrix of a bench over all machines of a Ray cluster, group by group, into one results folder."""
