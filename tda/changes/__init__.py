"""What changed between two builds, commits or folders: measuring in turn, effects, detection, comparison."""
