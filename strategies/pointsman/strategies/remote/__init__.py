"""Strategies that run in a process of their own: LLMRouter itself, and code that was signed.

- `serve`: what runs in that process; the standard library alone, and then LLMRouter or the operator's code
- `child`: starting it (environment, memory, output), looking at it, ending it
- `owner` (once an instance, in the supervisor): the queue, deadlines, pings, restarts
- `hub`, `scorer`: the Unix socket between the owner and the gateway's workers, and its end in those
- `prepare`: LLMRouter's YAML with its data in a directory that it may write to
- `wheel`, `code` : a signed wheel: checked, unpacked, polled for

Nothing is imported here: `serve` is run by interpreters that have nothing of ours.
"""

__all__: list[str] = []
