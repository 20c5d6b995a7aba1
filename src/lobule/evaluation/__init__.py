"""Metrics, patient-level intervals, calibration and operating points, from arrays to numbers."""
