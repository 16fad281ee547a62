"""Configurations that come with the package, to start from."""

from __future__ import annotations

from pathlib import Path

from pointsman.errors import ConfigError
from pointsman.overrides import closest

__all__ = ["PROFILES", "profile_path"]

PROFILES: tuple[str, ...] = ("local", "ha", "aws", "gpu", "airgapped")


def profile_path(name: str) -> Path:
    """The YAML file of a profile.

    Raises:
        ConfigError: E4204, there is no such profile.
    """
    if name not in PROFILES:
        guess = closest(name, PROFILES)
        mend = f"Did you mean {guess}? " if guess else ""
        raise ConfigError(f"there is no profile {name!r}", code="E4204", mend=f"{mend}Profiles: {', '.join(PROFILES)}.")
    return Path(__file__).parent / "profiles" / f"{name}.yaml"
