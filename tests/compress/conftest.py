"""Puts ``user_nets`` within reach of the tests below."""
