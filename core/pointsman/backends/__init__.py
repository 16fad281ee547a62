"""Model backends of our own. `mock_settings` is light; `mock` needs LiteLLM."""
