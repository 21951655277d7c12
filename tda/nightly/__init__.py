"""The nightly run: new commits measured, judged and reported."""
