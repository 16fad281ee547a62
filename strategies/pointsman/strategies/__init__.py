"""Predicts: text in, a score for each candidate out.

- `base`: the protocols `Strategy` and `Encoder`; `kinds`: which ones exist
- `encoders`, `knn`: text to vector, vector to scores
- `bundle`, `bundle_format`, `manifest`: the artifact, its archive and its schema
- `pointer`: which bundle is proposed, and who signed that
- `sources`: files and S3, fetched only when changed
- `rollout`: what the fleet is to run
- `reloader` (once per instance): poll, verify, keep the last good one; `registry` (each worker): what is in service

Nothing is imported here, so that importing one of them costs only that one.
"""

__all__: list[str] = []
