"""The dashboard: pages over the commits of a history."""
