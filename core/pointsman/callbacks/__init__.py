"""Observes: what is made of the leaf records besides rows in Postgres."""
