"""Decides: candidates in, an order of preference out."""
