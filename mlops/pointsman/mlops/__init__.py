"""Learns: data in, an evaluated and signed bundle out. Nothing that serves requests imports this room.

- `data`: training data, checked line by line
- `duplicates`: groups of near-duplicates and the split along them
- `lsa`: fits the `tfidf` encoder
- `evaluate`: the held-out table with its baselines
- `train`: all of it, to a bundle and a card
- `keys`, `publish`: sign and upload
"""

__all__: list[str] = []
