"""Strategies that call the gateway's own models before the call that answers: `automix` and the multi-round ones.

Everything here happens while LiteLLM's router asks which deployment is to serve the request (`async_filter_deployments`). The
calls that a cascade makes meanwhile are ordinary calls of the same router, in the same model group, each sent to one deployment
by a context variable that no client can set. What comes out is a deployment for the call that answers, which LiteLLM makes
itself as any other: streamed, retried, counted, and cut off when the client leaves. Only an answer that is there already is
given by a provider of our own (`replay`), at no cost.

- `limits`, `parse`, `prompts`, `automix`, `multiround`: what is done, without LiteLLM, given something that asks a model;
- `models`, `rules`: a group's models, weakest first; which requests are left alone;
- `calls`, `money`, `replay`: where LiteLLM is met;
- `service`: what the hook calls.
"""
