"""Prune, quantize, export and build trained ResNets for the device that they ship on."""

from compress.signals import leave_early

__version__ = "0.1.0"

leave_early(__name__)
