"""The processes of one instance: a supervisor, a preloader that imports LiteLLM once, and the workers forked from it."""
