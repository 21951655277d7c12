"""Everything that needs a GPU, in one command and six minutes: see `benchmarks.gpu_check.__main__`."""
