"""Prune, quantize, export and build trained ResNets for the device that they ship on."""

__version__ = "0.1.0"
