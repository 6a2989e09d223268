"""What a traced network is made of: operations, channels that go together, pieces that latency adds up over.

Pruning, quantization and export read this, and nothing here knows of them.
"""
