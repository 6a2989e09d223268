"""From a network as its author wrote it to one dialect: standard layers, and functions from a short list.

``torch.export`` runs the forward pass once and records what it computes: a flat graph of ATen operations. ``raised``
turns that graph into a ``torch.fx`` module that calls an ``nn.Conv2d``, an ``nn.BatchNorm2d`` and so on wherever an
operation owns parameters, and functions such as ``torch.relu`` otherwise. All later stages read that graph.
"""
