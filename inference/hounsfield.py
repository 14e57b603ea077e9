"""Hounsfield units that several modules go by."""

AIR = -1024
"""The lowest that scanners store, in twelve bits; air itself has -1000."""

DENSEST = 3071
"""The highest; metal lies beyond."""

NO_TISSUE = -250.0
"""Below it there is gas, lung, or the blurred edge of one."""
