"""How pages look: figures, colours, numbers as text, and libraries from npm."""
