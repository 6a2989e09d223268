"""The structure of a traced network: its operations, the channels that go together, and its segments.

Pruning, quantization and export use this package; it does not depend on them.
"""
