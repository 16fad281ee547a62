"""Take over the database of an existing LiteLLM installation: check, back up, migrate, prove.

    report = adopt(url, Options(keys, ...), print)

Nothing is changed before every check has passed, the migrations have been rehearsed on a copy of the schema (rehearsal.py) and
the salt key has opened what is stored encrypted (secrets.py, with LiteLLM's own function in a process beside us: witness.py).
"""

from pointsman.migrations.adoption.report import Outcome, Report, Step
from pointsman.migrations.adoption.secrets import Keys
from pointsman.migrations.adoption.steps import Options, adopt

__all__ = ["Keys", "Options", "Outcome", "Report", "Step", "adopt"]
