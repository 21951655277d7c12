"""The page of a profile: where a decode step spends its time, what a method saved, and what keeps it from its limit."""

from tda.web.profile.page import ProfileReport, build_profile_report

__all__ = ["ProfileReport", "build_profile_report"]
