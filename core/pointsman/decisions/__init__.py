"""Decision records: the leaf types and their store."""

from pointsman.decisions.types import Attempt, Decision, Dropped, Encoded, Outcome, new_decision_id

__all__ = ["Attempt", "Decision", "Dropped", "Encoded", "Outcome", "new_decision_id"]
