"""What stands around LiteLLM's ASGI application: middleware, our own endpoints, and a server that drains."""
