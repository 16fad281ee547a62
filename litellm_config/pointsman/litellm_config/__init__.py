"""Reads, checks and translates the YAML file; knows the profiles; finds models on the machine. Never imports LiteLLM."""

from pointsman.litellm_config.config import GatewayConfig, check, litellm_environment, load, write_effective
from pointsman.litellm_config.detect import Detected, detect
from pointsman.litellm_config.initialise import render_init
from pointsman.litellm_config.problems import InvalidConfigError, Problem
from pointsman.litellm_config.starters import PROFILES, profile_path

__all__ = [
    "PROFILES",
    "Detected",
    "GatewayConfig",
    "InvalidConfigError",
    "Problem",
    "check",
    "detect",
    "litellm_environment",
    "load",
    "profile_path",
    "render_init",
    "write_effective",
]
