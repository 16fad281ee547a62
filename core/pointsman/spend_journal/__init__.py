"""What LiteLLM was told to book and has not written yet, kept on disk, so that a worker that is killed loses nothing of it."""
