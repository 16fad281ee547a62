"""What of LiteLLM this project reaches: the one list, with the reason. A test holds it against the imports of the code.

A move of the pin looks at each: gone, or with another signature, is what has to be looked at by hand.
"""

from __future__ import annotations

__all__ = ["CONTRACT_TESTS", "TOUCHED"]

TOUCHED: dict[str, str] = {
    # The router's hook (custom_router/hook.py, deployments.py), and what it overrides.
    "litellm:callbacks": "our hook stands last in it",
    "litellm.integrations.custom_logger:CustomLogger": "base of the hook",
    "litellm.integrations.custom_logger:CustomLogger.async_filter_deployments": "picks",
    "litellm.integrations.custom_logger:CustomLogger.async_moderation_hook": "the deadline's watch beside a call",
    "litellm.integrations.custom_logger:CustomLogger.async_pre_call_hook": "what is asked for, and whether the key may",
    "litellm:model_cost": "tells a model that is free from one whose price is not known",
    "litellm.integrations.custom_logger:CustomLogger.async_pre_call_deployment_hook": "an attempt begins",
    "litellm.integrations.custom_logger:CustomLogger.async_post_call_failure_deployment_hook": "an attempt failed",
    "litellm.integrations.custom_logger:CustomLogger.async_log_success_event": "a request succeeded",
    "litellm.integrations.custom_logger:CustomLogger.async_post_call_failure_hook": "a request failed",
    "litellm.litellm_core_utils.prompt_templates.factory:resolve_structured_messages": "text of a /v1/responses request",
    "litellm.responses.utils:ResponsesAPIRequestUtils": "who keeps the previous response",
    "litellm.responses.utils:ResponsesAPIRequestUtils.get_model_id_from_response_id": "reads it out of its id",
    "litellm.router_strategy.tag_based_routing:get_deployments_for_tag": "its filter after ours, foreseen",
    "litellm.utils:get_excluded_filtered_deployments": "its filter after ours, foreseen",
    "litellm.utils:get_order_filtered_deployments": "its filter after ours, foreseen",
    # Where a request goes when its group rests (custom_router/elsewhere.py).
    "litellm.utils:get_deployment_order": "whether deployments of a higher order are left",
    "litellm.router_utils.fallback_event_handlers:check_non_standard_fallback_format": "reads a list of fallbacks",
    "litellm.router_utils.fallback_event_handlers:fallbacks_disabled_for_request": "whether the request wants none",
    "litellm.router_utils.fallback_event_handlers:get_fallback_model_group": "reads a list of fallbacks",
    # Streams that break before their first content (custom_router/failover/streams.py).
    "litellm.integrations.custom_logger:CustomLogger.async_post_call_streaming_iterator_hook": "sees streams, and begins anew",
    "litellm.exceptions:MidStreamFallbackError": "the envelope of what a stream broke with",
    "litellm.proxy.route_llm_request:route_request": "asks the router again for the same request",
    # Cascades (custom_router/cascades), whose answers go through a CustomLLM as well.
    "litellm:Router.acompletion": "a cascade's calls",
    "litellm.proxy.proxy_server:get_current_spend": "the caller's budgets, between a cascade's calls",
    "litellm.types.utils:StandardCallbackDynamicParams": "how key and team want a cascade's calls logged",
    "litellm.proxy.litellm_pre_call_utils:get_dynamic_logging_metadata": "to which sinks a cascade's calls are told",
    "litellm.proxy.proxy_server:proxy_config": "where teams' settings of the file stand",
    "litellm:BudgetExceededError": "what a request ends with whose cascade spent the budget",
    # Hedged requests (custom_router/hedging), which go through the same provider.
    "litellm:cache": "whether an answer that is given again is kept",
    "litellm.integrations.custom_logger:CustomLogger.async_post_call_success_hook": "the client sees its tokens",
    # The application and its router (core/).
    "litellm.proxy.proxy_server:app": "embedded",
    "litellm.proxy.proxy_server:llm_router": "deployments are changed while it runs",
    "litellm.proxy.proxy_server:llm_model_list": "kept in step with the router",
    "litellm:Router.__init__": "router_settings are its parameters",
    "litellm:Router.upsert_deployment": "hot reload of the configuration",
    "litellm:Router.delete_deployment": "hot reload of the configuration",
    "litellm:Router.get_deployment": "hot reload of the configuration",
    "litellm:Router.aembedding": "asks an embedding model for the encoder `remote`",
    "litellm:Router.get_model_list": "hot reload of the configuration",
    "litellm.types.router:Deployment": "hot reload of the configuration",
    "litellm.secret_managers.main:get_secret": "os.environ/ and secret managers in a changed configuration",
    "litellm.rust_bridge.fork_guard:reserve_process_for_forking": "fork after the import",
    "litellm.proxy._types:LitellmUserRoles": "who is an administrator",
    "litellm.proxy._types:UserAPIKeyAuth": "who calls our endpoints",
    "litellm.proxy.auth.user_api_key_auth:user_api_key_auth": "authenticates our endpoints",
    # Questions of the gateway's own (custom_router/probes.py).
    "litellm:ahealth_check": "asks idle upstreams, and warms up local ones",
    "litellm.proxy.health_check:resolve_health_check_mode": "what its health check asks a deployment for",
    "litellm.proxy.health_check:update_litellm_params_for_health_check": "what its health check asks",
    # Metrics (core/callbacks/spend.py).
    "litellm.proxy.proxy_server:prisma_client": "where rows of the request log wait",
    "litellm.proxy.utils:PrismaClient.spend_log_transactions": "they, oldest first",
    # The journal of spend (core/spend_journal).
    "litellm:logging_callback_manager": "a callback behind the one that books",
    "litellm:disable_end_user_cost_tracking": "who is charged",
    "litellm.proxy.proxy_server:disable_spend_logs": "without rows there is no journal",
    "litellm.proxy.proxy_server:litellm_proxy_budget_name": "booked again as LiteLLM books",
    "litellm.proxy.proxy_server:proxy_logging_obj": "its writer of spend",
    "litellm.proxy.proxy_server:spend_event_producer": "where another process books there is no journal",
    "litellm.litellm_core_utils.core_helpers:get_litellm_metadata_from_kwargs": "whether somebody is charged",
    "litellm.proxy.spend_tracking.spend_tracking_utils:get_logging_payload": "the row of a request whose row was taken out",
    "litellm.proxy.proxy_server:scheduler": "tells when the job `update_spend_job` begins and ends",
    "litellm.proxy.db.db_spend_update_writer:DBSpendUpdateWriter._batch_database_updates": "charges an entry once more",
    "litellm.proxy.db.db_transaction_queue.redis_update_buffer:RedisUpdateBuffer": "whether counters wait in Redis",
    "litellm.proxy.spend_tracking.spend_tracking_utils:get_request_model_access_groups": "which groups are charged too",
    "litellm.proxy.utils:enqueue_spend_logs": "queues a row once more",
    # Spans (core/callbacks/span_export.py).
    "litellm.integrations.otel.model.config:is_otel_v2_enabled": "whether anybody asked for traces",
    "litellm.integrations.otel.plumbing.providers:register_exporter_factory": "its exporters, behind our sampler and scrubber",
    "litellm.integrations.otel.plumbing.providers:parse_headers": "its exporters, made as it makes them",
    "litellm.integrations.otel.plumbing.otlp_tls:resolve_otlp_http_tls": "its exporters, made as it makes them",
    # The mock provider (core/backends).
    "litellm:CustomLLM": "base of the mock provider",
    "litellm.types.utils:EmbeddingResponse": "its answers",
    "litellm.types.utils:GenericStreamingChunk": "its answers",
    "litellm.types.utils:ModelResponse": "its answers, and those that are given again",
    "litellm:APIConnectionError": "an error that the mock provider raises",
    "litellm:APIError": "an error that the mock provider raises",
    "litellm:AuthenticationError": "an error that the mock provider raises",
    "litellm:BadGatewayError": "an error that the mock provider raises",
    "litellm:BadRequestError": "an error that the mock provider raises; a stream is asked for that is switched off",
    "litellm:InternalServerError": "an error that the mock provider raises",
    "litellm:NotFoundError": "an error that the mock provider raises",
    "litellm:RateLimitError": "an error that the mock provider raises",
    "litellm:ServiceUnavailableError": "an error that the mock provider raises",
    "litellm:Timeout": "an error that the mock provider raises",
    "litellm:Usage": "the mock provider's usage and answers",
    "litellm:get_model_info": "the mock provider's usage and answers",
    "litellm:token_counter": "the mock provider's usage and answers",
    # The database (migrations/).
    "litellm_proxy_extras.request_log_indexes:ensure_request_log_indexes": "indexes of the request log",
    "litellm.proxy.common_utils.encrypt_decrypt_utils:decrypt_if_encrypted_with": "adoption tries the salt key",
    "litellm.proxy._types:LiteLLM_MCPServerTable": "adoption reads rows as LiteLLM does",
    "litellm.types.agents:AgentResponse": "adoption reads rows as LiteLLM does",
    "litellm.types.router:LiteLLM_Params": "adoption reads rows as LiteLLM does",
    "litellm.proxy.utils:PrismaClient": "the benchmark of the database",
}
"""`module:attribute`, `module:Class.method` -> why."""

CONTRACT_TESTS = (
    "tests/config/test_contract.py",
    "tests/custom_router",
    "tests/engine",
    "tests/migrations",
    "tests/adoption",
    "tests/e2e/test_endpoints.py",
    "tests/e2e/test_routing.py",
    "tests/e2e/test_access.py",
    "tests/project/test_bump.py",
)
"""What proves that another LiteLLM still keeps what we rely on; the whole suite says more and takes longer."""
