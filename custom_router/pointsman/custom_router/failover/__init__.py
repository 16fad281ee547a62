"""A further try: whether there is one, when, and what becomes of a stream that breaks before anything was said.

- `backoff`: how long to wait; `budget`: how many further tries a group may have; `trail`: what one request has tried.
- `again`: decides on each further try; `stop`: the error that ends a request; `events`, `streams`: answers that are streamed.
"""
