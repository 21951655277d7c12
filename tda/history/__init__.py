"""What was measured over time: the folder of a history, its nights, profiles and commits, as one table."""
