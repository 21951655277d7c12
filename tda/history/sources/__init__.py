"""Where the rows of a history come from: one module each."""
