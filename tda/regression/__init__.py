"""Regressions across commits: builds in alternating processes, detection, alarms and their history."""
