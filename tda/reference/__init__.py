"""The reference models: what they are trained on and how; their weights ship with the package."""
