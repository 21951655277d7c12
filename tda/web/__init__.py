"""Pages: the report of a bench, the dashboard of a history, profiles, and the theme that they share."""
