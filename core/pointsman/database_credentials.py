"""Passwords that change: database tokens (AWS RDS IAM) and files that somebody rotates."""

__all__: list[str] = []
