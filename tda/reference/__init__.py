"""The reference models: what they are trained on and how; their weights ship with the package."""

from pathlib import Path

WEIGHTS = Path(__file__).resolve().parent / "weights"
"""A folder for each reference model."""
