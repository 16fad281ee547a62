"""Names that LiteLLM and LLMRouter know, as literals or from our own tables: checking a file must not cost LiteLLM's import.

Tests hold them against the installed LiteLLM, so that moving its pin shows what changed.
"""

from __future__ import annotations

from pointsman.settings import StrategySettings
from pointsman.strategies.catalogue import CATALOGUE, PREFIX

__all__ = [
    "DEPLOYMENT_KEYS",
    "GENERAL_SETTINGS",
    "LEARNED_STRATEGIES",
    "LITELLM_PARAMS",
    "LITELLM_SETTINGS",
    "LITELLM_STRATEGIES",
    "LLMROUTER_ARGUMENTS",
    "LLMROUTER_PREFIX",
    "LLMROUTER_STRATEGIES",
    "PROVIDERS",
    "ROUTER_SETTINGS",
    "SECTIONS",
    "SERVED_KINDS",
]


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


SECTIONS = _words(
    """model_list litellm_settings general_settings router_settings environment_variables callback_settings
    credential_list guardrails mcp_servers mcp_tools agent_list agents assistant_settings files_settings
    finetune_settings default_vertex_config policies policy_attachments prompts sandbox_tools search_tools
    vector_store_registry worker_registry include"""
)
"""Top-level sections that LiteLLM's proxy reads; it ignores any other in silence. `pointsman` is ours."""

DEPLOYMENT_KEYS = frozenset({"model_name", "litellm_params", "model_info"})

LITELLM_STRATEGIES = _words(
    """simple-shuffle lar1 least-busy latency-based-routing cost-based-routing usage-based-routing-v2 usage-based-routing
    provider-budget-routing"""
)
"""`router_settings.routing_strategy` that LiteLLM's own router knows; it refuses to start with any other."""

LLMROUTER_PREFIX = PREFIX

LEARNED_STRATEGIES = frozenset(entry.name for entry in CATALOGUE.values())
"""Every learned strategy by the name that `routing_strategy` takes: LLMRouter's with the prefix, ours without."""

LLMROUTER_STRATEGIES = frozenset(entry.name for entry in CATALOGUE.values() if entry.llmrouter is not None)
"""What LLMRouter's gateways call their strategies."""

SERVED_KINDS = frozenset(kind for kind, entry in CATALOGUE.items() if entry.broken is None)
"""Kinds of strategies that this version serves; of the others the catalogue says why not."""

_SETTINGS = frozenset(StrategySettings.model_fields) - {"source", "kind"}
LLMROUTER_ARGUMENTS = _words("model_path model_s3_bucket model_s3_key") | _SETTINGS
"""`router_settings.routing_strategy_args` of a learned strategy: what LLMRouter's gateways know, and our settings."""

ROUTER_SETTINGS = _words(
    """alerting_config allowed_fails allowed_fails_policy background_health_check_model_groups cache_kwargs
    cache_responses caching_groups client_ttl content_policy_fallbacks context_window_fallbacks cooldown_time
    debug_level default_fallbacks default_litellm_params default_max_parallel_requests default_priority
    deployment_affinity_ttl_seconds disable_cooldowns enable_health_check_routing enable_pre_call_checks
    enable_tag_filtering enable_weighted_failover fallbacks guardrail_list health_check_ignore_transient_errors
    health_check_staleness_threshold max_fallbacks model_group_affinity_config model_group_alias
    model_group_retry_policy num_retries optional_pre_call_checks plugins polling_interval provider_budget_config
    redis_db redis_host redis_password redis_port redis_url retry_after retry_policy routing_groups routing_strategy
    routing_strategy_args set_verbose stream_timeout tag_filtering_match_any tag_routing_prefix timeout"""
)
"""What LiteLLM's router takes from the file; it ignores any other key with a line in the log."""

GENERAL_SETTINGS = _words(
    """master_key database_url database_connection_pool_limit store_model_in_db alerting alerting_args alerting_threshold
    background_health_checks health_check_interval custom_auth key_management_system pass_through_endpoints
    proxy_config_reload_interval_seconds store_prompts_in_spend_logs max_parallel_requests
    global_max_parallel_requests infer_model_from_keys completion_model allowed_routes coordination_redis"""
)
"""The common ones; LiteLLM passes unknown keys on, so only near misses of these are told."""

LITELLM_SETTINGS = _words(
    """callbacks success_callback failure_callback cache cache_params drop_params num_retries request_timeout json_logs
    set_verbose custom_provider_map default_team_settings budget_exceeded_status_code request_correlation_in_logs
    fallbacks context_window_fallbacks turn_off_message_logging modify_params"""
)
"""The common ones, as above."""

LITELLM_PARAMS = _words(
    """model api_key api_base api_version timeout stream_timeout max_retries rpm tpm organization custom_llm_provider
    litellm_credential_name aws_region_name aws_access_key_id aws_secret_access_key aws_session_token aws_profile_name
    aws_role_name vertex_project vertex_location vertex_credentials region_name input_cost_per_token
    output_cost_per_token drop_params tags max_budget budget_duration use_in_pass_through"""
)
"""The common ones, as above: a deployment's parameters go to its provider."""

PROVIDERS = _words(
    """a2a a2a_agent ai21 ai21_chat aiml aiohttp_openai amazon_nova anthropic anthropic_text apertis assemblyai
    auto_router aws_polly aws_textract azure azure_ai azure_speech azure_text baseten bedrock bedrock_mantle
    black_forest_labs bytez cerebras charity_engine chatgpt chutes clarifai cloudflare codestral cognition cohere
    cohere_chat cometapi compactifai cortecs cursor custom custom_openai darkbloom dashscope databricks datarobot
    deepgram deepinfra deepseek docker_model_runner dotprompt edenai elevenlabs empower fal_ai featherless_ai
    fireworks_ai friendliai galadriel gdc gemini gigachat github github_copilot gradient_ai groq helicone heroku
    hosted_vllm huggingface humanloop hyperbolic inception infinity jina_ai lambda_ai langflow langfuse langgraph
    lemonade libertai litellm_agent litellm_proxy llamafile lm_studio manus maritalk meta meta_llama milvus minimax
    mistral modelscope mongodb moonshot morph nadir nano-gpt nebius neosantara nlp_cloud novita nscale nvidia_nim
    nvidia_riva oci ollama ollama_chat oobabooga openai openai_like openrouter ovhcloud parasail perplexity petals
    pg_vector pinstripes poe predibase prism publicai qwen_ai_platform qwencloud ragflow recraft reducto reka
    replicate runwayml s3_vectors sagemaker sagemaker_chat sagemaker_nova sail sambanova sap scaleway scx-ai snowflake
    soniox stability strands_decider synthetic tencent tensormesh text-completion-codestral text-completion-inception
    text-completion-openai together_ai topaz transcribe triton typesafe v0 valkey vercel_ai_gateway vertex_ai
    vertex_ai_beta vllm volcengine voyage wandb watsonx watsonx_text xai xiaomi_mimo xinference zai"""
)
"""Prefixes of `litellm_params.model`."""
