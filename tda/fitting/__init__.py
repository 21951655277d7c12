"""What calibration text leaves behind, in bounded memory, and how methods are fitted by it."""
