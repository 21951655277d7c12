"""Calibration: thresholds from text, offline, in bounded memory."""

from tda.calibration.calibrate import calibrate, calibrate_all, fit

__all__ = ["calibrate", "calibrate_all", "fit"]
