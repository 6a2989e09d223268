"""Prune, quantize, export and build trained ResNets for the device that they ship on."""

from compress.startup import begin

__version__ = "0.2.0"

begin(__name__)
