"""`personalized`: each user has a preference of their own; a user that it does not know gets the population's answer.

Two forms:

- `graph`, LLMRouter's `PersonalizedRouter`: as in `graph`, edges of a new prompt are hidden and the models' states frozen, but
  there is a set of states for each user, because the user's features stand in every node of the graph. So score_um =
  logistic(s_um . (P x) + b_um), with P (k, d) the prompt's part of the first layer, s_um (k,) and b_um a user's and model's.
  The population is the mean of the users' s and b (upstream, a user that it does not know is taken for the first one).
- `shift`, ours (`pointsman.mlops.trainers.personalized`): one affine map a model for everybody, q_m = w_m . x + b_m, and for
  the user u: c_m + a_u (q_m - c_m) + t_um, cut to [0, 1], with c_m the model's mean score. Scales a_u and shifts t_um were
  shrunk towards 1 and 0, so that who was seen twice is hardly different from everybody.

Users stand in a bundle as the first 8 bytes of SHA-256 over a salt and the name. The salt lies beside them, so whoever has the
bundle can *try* names (all the numbers, or a list of addresses) and see what a user prefers; it says how many users there are.
It does not list names. Of 10^6 users, one stranger in 10^13 is taken for a known one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from pointsman.errors import BundleError
from pointsman.strategies.arrays import ArraySpec, ParamsModel, check_arrays, check_params
from pointsman.strategies.base import Arrays, Matrix, Params, Scale
from pointsman.strategies.links import apply_link

__all__ = ["Form", "PersonalizedStrategy", "user_hash", "user_hashes"]

Form = Literal["graph", "shift"]

_SPECS: dict[Form, dict[str, ArraySpec]] = {
    "graph": {
        "projection": (("float32",), ("space", "dimensions")),
        "states": (("float32",), ("users", "models", "space")),
        "bias": (("float32",), ("users", "models")),
    },
    "shift": {
        "weights": (("float32",), ("models", "dimensions")),
        "bias": (("float32",), ("models",)),
        "centre": (("float32",), ("models",)),
        "scales": (("float32",), ("users",)),
        "shifts": (("float32",), ("users", "models")),
    },
}


class PersonalizedParams(ParamsModel):
    form: Form
    salt: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]


def user_hash(salt: str, user: str) -> int:
    """What stands for a user, see the module. `salt`: 32 hexadecimal digits."""
    # A lone surrogate cannot be encoded strictly, and a name from a request may hold one.
    return int.from_bytes(hashlib.sha256(bytes.fromhex(salt) + user.encode("utf-8", "surrogatepass")).digest()[:8], "big")


def user_hashes(salt: str, users: Sequence[str]) -> NDArray[np.uint64]:
    """The same for several, in their order."""
    return np.array([user_hash(salt, user) for user in users], np.uint64)


class PersonalizedStrategy:
    """See the module. Immutable, thread-safe; it is `Personal`.

    Args:
        models: names of the m candidates.
        form: which of the two.
        salt: 32 hexadecimal digits.
        users: uint64 (u,), hashes of the users, rising.
        parts: the form's arrays, float32. `graph`: projection (k, d), states (u, m, k), bias (u, m). `shift`: weights (m, d),
            bias (m,), centre (m,), scales (u,), shifts (u, m).
    """

    kind: ClassVar[str] = "personalized"

    def __init__(self, models: tuple[str, ...], form: Form, salt: str, users: NDArray[np.uint64], parts: Arrays) -> None:
        self._models, self._form, self._salt, self._users = models, form, salt, users
        self._parts = {name: parts[name] for name in _SPECS[form]}
        # The population is one row more, the last.
        if form == "graph":
            own = (self._parts["states"], self._parts["bias"])
            self._own = tuple(
                np.concatenate((each, each.mean(axis=0, dtype=np.float64)[None])).astype(np.float32) for each in own
            )
        else:
            scales, shifts = self._parts["scales"], self._parts["shifts"]
            nobody = np.zeros((1, len(models)), np.float32)
            self._own = (np.concatenate((scales, np.ones(1, np.float32)))[:, None], np.concatenate((shifts, nobody)))

    @property
    def models(self) -> tuple[str, ...]:
        """Names of the candidates, in the order of the scores' columns."""
        return self._models

    @property
    def dimensions(self) -> int:
        """Length of the vectors that it wants."""
        return int(self._parts["projection" if self._form == "graph" else "weights"].shape[1])

    @property
    def scale(self) -> Scale:
        """Expected scores of ours; ranks of LLMRouter's."""
        return "quality" if self._form == "shift" else "rank"

    @property
    def known_users(self) -> int:
        """How many users it knows."""
        return len(self._users)

    def score(self, vectors: Matrix) -> Matrix:
        """The population's answer; see `Strategy.score`."""
        return self._score(vectors, np.full(len(vectors), len(self._users), np.intp))

    def score_for(self, vectors: Matrix, users: Sequence[str | None]) -> Matrix:
        """See `Personal.score_for`."""
        return self._score(vectors, np.array([self._row(user) for user in users], np.intp))

    def _row(self, user: str | None) -> int:
        """Where a user's arrays lie; the population's for nobody and for a stranger."""
        if user is None:
            return len(self._users)
        wanted = np.uint64(user_hash(self._salt, user))
        found = int(np.searchsorted(self._users, wanted))
        return found if found < len(self._users) and self._users[found] == wanted else len(self._users)

    def _score(self, vectors: Matrix, rows: NDArray[np.intp]) -> Matrix:
        with np.errstate(all="ignore"):  # absurd weights overflow; `apply_link` makes numbers of that
            if self._form == "graph":
                states, bias = self._own
                placed = vectors @ self._parts["projection"].T
                scores = np.empty((len(rows), len(self._models)), np.float32)
                for number, row in enumerate(rows):  # gathering the states of a batch would copy them
                    scores[number] = states[row] @ placed[number] + bias[row]
                return apply_link(scores, "logistic")
            scales, shifts = self._own
            centre = self._parts["centre"]
            common = vectors @ self._parts["weights"].T + self._parts["bias"]
            return apply_link(centre + scales[rows] * (common - centre) + shifts[rows], "unit")

    def params(self) -> dict[str, Any]:
        """See `Encoder.params`."""
        return {"form": self._form, "salt": self._salt}

    def arrays(self) -> dict[str, NDArray[Any]]:
        """See `Encoder.arrays`."""
        return {"users": self._users, **self._parts}

    @classmethod
    def from_parts(cls, models: tuple[str, ...], params: Params, arrays: Arrays) -> Self:
        """See `Encoder.from_parts`."""
        checked = check_params(PersonalizedParams, params, "strategy")
        specs: dict[str, ArraySpec] = {"users": (("uint64",), ("users",)), **_SPECS[checked.form]}
        check_arrays(arrays, specs, "strategy", {"models": len(models)})
        users = arrays["users"]
        if not len(users) or bool((users[1:] <= users[:-1]).any()):
            raise BundleError(
                "hashes of users must be there, and rise: none may stand twice", code="E4307", where="strategy users"
            )
        return cls(models, checked.form, checked.salt, users, arrays)
