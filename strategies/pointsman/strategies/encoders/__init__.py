"""Encoders: text to vector, without a download. `hashing` learns nothing, `tfidf` learns weights and a projection."""

__all__: list[str] = []
