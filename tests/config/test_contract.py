"""The literal tables against the installed LiteLLM, and the effective copy in its hands."""

from __future__ import annotations

import asyncio
import copy
import dataclasses
import hashlib
import typing
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import litellm
import pytest
from litellm.constants import ROUTER_SETTINGS_MANAGED_OUTSIDE_CONFIG
from litellm.router_utils.routing_groups import VALID_ROUTING_STRATEGIES
from litellm.types.router import LiteLLM_Params
from litellm.utils import custom_llm_setup
from opentelemetry.sdk import environment_variables

from pointsman.backends.mock import MockLLM
from pointsman.litellm_config import load, profile_path, tables
from pointsman.litellm_config.detect import PROVIDER_KEYS
from pointsman.litellm_config.effective import DEFAULTS, ENVIRONMENT

PACKAGE = Path(litellm.__file__).parent


def _source(*paths: str) -> str:
    return "\n".join((PACKAGE / path).read_text(encoding="utf-8") for path in paths)


@pytest.fixture(scope="module")
def proxy() -> str:
    return _source("proxy/proxy_server.py", "proxy/common_utils/config_includes.py")


def test_the_strategies_are_litellms() -> None:
    assert frozenset(VALID_ROUTING_STRATEGIES) == tables.LITELLM_STRATEGIES


def test_the_router_settings_are_litellms() -> None:
    assert set(litellm.Router.get_valid_args()) - set(ROUTER_SETTINGS_MANAGED_OUTSIDE_CONFIG) == tables.ROUTER_SETTINGS


def test_the_providers_are_litellms() -> None:
    known = {str(getattr(item, "value", item)) for item in litellm.provider_list} - {"mock"}
    assert known == tables.PROVIDERS


def test_the_sections_are_read_by_the_proxy(proxy: str) -> None:
    assert [name for name in sorted(tables.SECTIONS) if f'"{name}"' not in proxy] == []


def test_the_common_settings_exist() -> None:
    from litellm.proxy._types import ConfigGeneralSettings

    text = _source("proxy/proxy_server.py", "proxy/auth/user_api_key_auth.py")
    fields = set(ConfigGeneralSettings.model_fields)
    assert [n for n in sorted(tables.GENERAL_SETTINGS - fields) if f'"{n}"' not in text] == []
    assert [n for n in sorted(tables.LITELLM_SETTINGS) if not hasattr(litellm, n) and f'"{n}"' not in text] == []
    params = set(LiteLLM_Params.model_fields)
    main = _source("main.py", "types/utils.py", "types/router.py")
    assert [n for n in sorted(tables.LITELLM_PARAMS - params) if n not in main] == []


def test_the_defaults_and_variables_are_ones_that_litellm_reads() -> None:
    for default in DEFAULTS:
        if default.section == "router_settings":
            assert default.key in litellm.Router.get_valid_args()
        elif default.section == "litellm_settings":
            assert hasattr(litellm, default.key)
    text = "\n".join(path.read_text(encoding="utf-8") for path in PACKAGE.rglob("*.py"))
    sdk = {value for name, value in vars(environment_variables).items() if name.startswith("OTEL_")}  # makes its exporters
    assert [item.name for item in ENVIRONMENT if item.name not in text and item.name not in sdk] == []


def test_the_provider_keys_are_ones_that_litellm_reads() -> None:
    assert set(PROVIDER_KEYS) <= tables.PROVIDERS
    text = "\n".join(path.read_text(encoding="utf-8") for path in PACKAGE.rglob("*.py"))
    assert [name for names in PROVIDER_KEYS.values() for name in names if f'"{name}"' not in text] == []


class Counting(MockLLM):
    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[str] = Counter()

    def _begin(self, call: Mapping[str, Any]) -> Any:
        self.seen[str(call["model"])] += 1
        return super()._begin(call)


@pytest.fixture
def mock() -> Iterator[Counting]:
    handler = Counting()
    before = litellm.custom_provider_map
    litellm.custom_provider_map = [{"provider": "mock", "custom_handler": handler}]
    custom_llm_setup()
    yield handler
    litellm.custom_provider_map = before


def router(effective: dict[str, Any]) -> Any:
    return litellm.Router(model_list=copy.deepcopy(effective["model_list"]), **effective["router_settings"])


async def asked(target: Any, model: str, times: int) -> list[Any]:
    answers = []
    for _ in range(times):
        try:
            answers.append(await target.acompletion(model=model, messages=[{"role": "user", "content": "x"}]))
        except litellm.exceptions.InternalServerError as error:
            answers.append(error)
    return answers


@pytest.mark.requirement("R-14.1")
@pytest.mark.parametrize("group", ["chat", "backed"])
async def test_a_dead_deployment_rests_and_nobody_notices(tmp_path: Path, mock: Counting, group: str) -> None:
    path = tmp_path / "c.yaml"
    dead = "{model: mock/dead, mock: {fail: {status: 500}}}"
    second = "chat" if group == "chat" else "other"
    path.write_text(
        f"model_list:\n- {{model_name: {group}, litellm_params: {dead}}}\n"
        f"- {{model_name: {second}, litellm_params: {{model: mock/good}}}}\n"
        "router_settings: {fallbacks: [{backed: [other]}]}\n"
        "pointsman: {resilience: {breaker: {enabled: false}}}\n"  # LiteLLM's own cooldowns
    )
    answers = await asked(router(load(path, {}).effective), group, 12)
    served = [answer.choices[0].message.content for answer in answers if not isinstance(answer, Exception)]
    assert len(served) == 12 if group == "backed" else len(served) >= 11  # by chance alone LiteLLM retries on the dead one
    assert set(served) == {"good says: x"}
    assert mock.seen["dead"] <= 3


async def test_the_only_deployment_of_a_group_never_rests(tmp_path: Path, mock: Counting) -> None:
    path = tmp_path / "c.yaml"
    fault = "mock: {fail: {status: 500, every: 2}}"
    path.write_text(f"model_list: [{{model_name: a, litellm_params: {{model: mock/a, {fault}}}}}]\n")
    answers = await asked(router(load(path, {}).effective), "a", 4)  # each fails once: LiteLLM pauses before a retry
    assert mock.seen["a"] == 7
    assert not any(isinstance(answer, Exception) for answer in answers)


@pytest.mark.parametrize("name", ["local", "gpu", "airgapped", "ha", "aws"])
def test_litellms_router_takes_every_profile(name: str, mock: Counting) -> None:
    effective = load(profile_path(name), {}).effective
    settings = {k: v for k, v in effective["router_settings"].items() if not k.startswith("redis")}
    made = litellm.Router(model_list=copy.deepcopy(effective["model_list"]), **settings)
    ids = [entry["model_info"]["id"] for entry in effective["model_list"]]
    assert sorted(made.get_model_ids()) == sorted(ids)


def test_the_raw_strategy_name_would_not_start(tmp_path: Path) -> None:
    """Why the translation is there: should LiteLLM learn the name, this fails and tells."""
    with pytest.raises(ValueError, match="Invalid routing_strategy"):
        litellm.Router(model_list=[], routing_strategy=typing.cast("Any", "llmrouter-knn"))


def test_the_known_master_key_is_the_one_that_litellm_refuses() -> None:
    from litellm.proxy.auth import master_key_boot_check as theirs

    from pointsman.litellm_config import checks

    assert hashlib.sha256(checks._KNOWN_KEY.encode()).hexdigest() in theirs.PUBLICLY_KNOWN_MASTER_KEY_SHA256_DIGESTS
    assert checks._WEAK_KEY_SETTING == theirs.WEAK_OR_UNSET_MASTER_KEY_OVERRIDE_SETTING
    assert checks._WEAK_KEY_VARIABLE == theirs.WEAK_OR_UNSET_MASTER_KEY_OVERRIDE_ENV_VAR


def test_types_stand_as_documented() -> None:
    assert all(dataclasses.is_dataclass(item) for item in (DEFAULTS[0], ENVIRONMENT[0]))
    assert asyncio.iscoroutinefunction(MockLLM.acompletion)
