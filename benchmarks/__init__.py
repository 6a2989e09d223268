"""Measures what compression costs in accuracy and buys in latency; every command is ``python -m benchmarks.NAME``."""

from compress.signals import leave_early

leave_early(__name__)
