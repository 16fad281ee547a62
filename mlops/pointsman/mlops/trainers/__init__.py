"""Which kinds can be trained, and how. A new one is a module with a `TRAINER` and a line here."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from pointsman.mlops.trainers import elo, ensemble, graph, hybrid, knn, linear, mf, mlp, personalized, routerdc, svm
from pointsman.mlops.trainers.base import Settings, Trainer, fit_strategy, folds, in_order, predict

__all__ = ["TRAINERS", "Settings", "Trainer", "fit_strategy", "folds", "in_order", "predict"]

_MODULES = (elo, ensemble, graph, hybrid, knn, linear, mf, mlp, personalized, routerdc, svm)
TRAINERS: Mapping[str, Trainer[Any]] = MappingProxyType({module.TRAINER.kind: module.TRAINER for module in _MODULES})
