"""The report of a run, from below: ``record`` reads its files; ``charts`` draws what is in them; ``headline``,
``sections`` and ``provenance`` say it; ``page`` writes it down as HTML and as a model card.
"""
