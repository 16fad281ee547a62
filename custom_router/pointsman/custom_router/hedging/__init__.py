"""Hedged requests: where the first deployment takes long a second one is asked as well, and the first answer is given.

As in J. Dean and L. A. Barroso, "The Tail at Scale", CACM 56(2), 2013. Both calls are calls of LiteLLM's router to one
deployment each, as a cascade's are, on the caller's account; what won is given by the provider `pointsman-replay`, at no cost.

- `race`: who is asked when, and who wins; without LiteLLM;
- `calls`: one call of the router, and its answer;
- `service`: what the hook calls: which requests, whom, how much of it.
"""
