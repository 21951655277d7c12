"""Profiles of requests: named ranges, kernel tables, roofline, and what a decode step's time is made of."""
