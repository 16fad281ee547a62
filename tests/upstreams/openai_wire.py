"""OpenAI's endpoints: what a request must look like, and the answer.

Wire formats: https://platform.openai.com/docs/api-reference (chat, completions, responses and its events, embeddings,
moderations, images, audio). The names of allowed parameters are read from the real SDK's own types.
"""

from __future__ import annotations

import base64
import hashlib
import struct
import time
from collections.abc import Iterable
from typing import Any

from openai.types import completion_create_params, embedding_create_params
from openai.types.chat import completion_create_params as chat_create_params
from openai.types.responses import response_create_params

from upstreams.wire import Answer, Payload, Refused, event, known_only, new_id, pieces, require, tokens

__all__ = [
    "chat",
    "completion",
    "embeddings",
    "error_body",
    "images",
    "models",
    "moderations",
    "rerank",
    "responses",
    "speech",
    "transcription",
]

ROLES = {"developer", "system", "user", "assistant", "tool", "function"}
PARTS = {"text", "image_url", "input_audio", "file", "refusal"}
CHAT_KEYS = {*chat_create_params.CompletionCreateParamsBase.__annotations__, "stream"}
COMPLETION_KEYS = {*completion_create_params.CompletionCreateParamsBase.__annotations__, "stream"}
EMBEDDING_KEYS = set(embedding_create_params.EmbeddingCreateParams.__annotations__)
RESPONSE_KEYS = {*response_create_params.ResponseCreateParamsBase.__annotations__, "stream"}
ERROR_TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}


def error_body(status: int, message: str, param: str | None = None, code: str | None = None) -> Payload:
    """OpenAI's error object."""
    kind = ERROR_TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def _texts(content: Any, where: str, kinds: set[str]) -> list[str]:
    """The texts of a message's content: a string, or parts of the allowed kinds."""
    if isinstance(content, str):
        return [content]
    if not isinstance(content, list) or not content:
        raise Refused(f"Invalid type for '{where}': expected a string or a list of parts.", param=where, code="invalid_type")
    texts: list[str] = []
    for number, part in enumerate(content):
        kind = part.get("type") if isinstance(part, dict) else None
        if kind not in kinds:
            raise Refused(f"Invalid value: '{kind}'. Supported values are: {sorted(kinds)}.", param=f"{where}[{number}].type")
        if kind in ("text", "input_text", "output_text"):
            if not isinstance(part.get("text"), str):
                raise Refused(f"Missing required parameter: '{where}[{number}].text'.", param=f"{where}[{number}].text")
            texts.append(part["text"])
    return texts


def _messages(messages: Any) -> list[str]:
    """Check chat messages; return their texts."""
    if not isinstance(messages, list) or not messages:
        raise Refused("Invalid 'messages': empty array. Expected an array with minimum length 1.", param="messages")
    texts: list[str] = []
    for number, message in enumerate(messages):
        where = f"messages[{number}]"
        if not isinstance(message, dict) or message.get("role") not in ROLES:
            role = message.get("role") if isinstance(message, dict) else message
            raise Refused(f"Invalid value: '{role}'. Supported values are: {sorted(ROLES)}.", param=f"{where}.role")
        if message["role"] == "tool" and not isinstance(message.get("tool_call_id"), str):
            raise Refused(f"Missing required parameter: '{where}.tool_call_id'.", param=f"{where}.tool_call_id")
        if message.get("content") is None:
            if message["role"] != "assistant" or not (message.get("tool_calls") or message.get("function_call")):
                raise Refused(f"Invalid value for 'content': expected a string, got null. ({where})", param=f"{where}.content")
            continue
        texts += _texts(message["content"], f"{where}.content", PARTS)
    return texts


def _sampling(payload: Payload) -> None:
    require(payload, "model", str, needed=True)
    require(payload, "temperature", (int, float), low=0, high=2)
    require(payload, "top_p", (int, float), low=0, high=1)
    require(payload, "n", int, low=1, high=128)
    require(payload, "max_tokens", int, low=1)
    require(payload, "stream", bool)
    if payload.get("stream_options") is not None and not payload.get("stream"):
        raise Refused("The 'stream_options' parameter is only allowed when 'stream' is enabled.", param="stream_options")


def _clip(text: str, limit: int | None) -> tuple[str, str]:
    """The text within `limit` tokens, and the finish reason."""
    words = text.split(" ")
    return (text, "stop") if limit is None or len(words) <= limit else (" ".join(words[:limit]), "length")


def _usage(prompt: Iterable[str], answers: list[str]) -> Payload:
    sent, received = tokens(*prompt), sum(tokens(answer) for answer in answers)
    return {"prompt_tokens": sent, "completion_tokens": received, "total_tokens": sent + received}


def chat(payload: Payload, name: str, said: str | None = None) -> Answer:
    """POST /v1/chat/completions, plain and streamed; `usage` in a last chunk when `stream_options.include_usage`.

    Args:
        payload: the request.
        name: of the upstream.
        said: the answer, in place of `served by NAME`.
    """
    known_only(payload, CHAT_KEYS)
    _sampling(payload)
    limit = require(payload, "max_completion_tokens", int, low=1) or payload.get("max_tokens")
    if payload.get("max_completion_tokens") and payload.get("max_tokens"):
        raise Refused("Setting 'max_tokens' and 'max_completion_tokens' at the same time is not supported.", param="max_tokens")
    texts = _messages(payload.get("messages"))
    answer, reason = _clip(said or f"served by {name}", limit)
    count, answer_id = payload.get("n") or 1, new_id("chatcmpl-")
    usage = _usage(texts, [answer] * count)
    head = {"id": answer_id, "created": int(time.time()), "model": payload["model"], "system_fingerprint": f"fp_{name}"}
    choices = [
        {
            "index": i,
            "message": {"role": "assistant", "content": answer, "refusal": None},
            "logprobs": None,
            "finish_reason": reason,
        }
        for i in range(count)
    ]
    with_usage = bool((payload.get("stream_options") or {}).get("include_usage"))

    def chunk(choices: list[Payload], usage: Payload | None = None) -> str:
        return event({**head, "object": "chat.completion.chunk", "choices": choices} | ({"usage": usage} if with_usage else {}))

    def delta(index: int, delta: Payload, reason: str | None = None) -> str:
        return chunk([{"index": index, "delta": delta, "logprobs": None, "finish_reason": reason}])

    events = [delta(i, {"role": "assistant", "content": ""}) for i in range(count)]
    events += [delta(i, {"content": piece}) for piece in pieces(answer) for i in range(count)]
    events += [delta(i, {}, reason) for i in range(count)]
    events += [chunk([], usage)] if with_usage else []
    error = event(error_body(500, f"{name} failed within the stream"))
    body = {**head, "object": "chat.completion", "choices": choices, "usage": usage}
    return Answer(answer_id, body, (*events, event("[DONE]")), error)


def completion(payload: Payload, name: str) -> Answer:
    """POST /v1/completions, plain and streamed."""
    known_only(payload, COMPLETION_KEYS)
    _sampling(payload)
    prompt = require(payload, "prompt", (str, list), needed=True)
    prompts = (
        [prompt] if isinstance(prompt, str) else [p if isinstance(p, str) else " ".join(map(str, _list(p))) for p in prompt]
    )
    answer, reason = _clip(f"served by {name}", payload.get("max_tokens"))
    answer_id = new_id("cmpl-")
    head = {"id": answer_id, "object": "text_completion", "created": int(time.time()), "model": payload["model"]}

    def choice(index: int, text: str, reason: str | None) -> Payload:
        return {"index": index, "text": text, "logprobs": None, "finish_reason": reason}

    usage = _usage(prompts, [answer] * len(prompts))
    events = [event({**head, "choices": [choice(0, piece, None)]}) for piece in pieces(answer)]
    events.append(event({**head, "choices": [choice(0, "", reason)]}))
    if (payload.get("stream_options") or {}).get("include_usage"):
        events.append(event({**head, "choices": [], "usage": usage}))
    body = {**head, "choices": [choice(i, answer, reason) for i in range(len(prompts))], "usage": usage}
    return Answer(answer_id, body, (*events, event("[DONE]")), event(error_body(500, f"{name} failed within the stream")))


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _response_texts(given: Any) -> list[str]:
    """Check a Responses `input`; return its texts."""
    if isinstance(given, str):
        return [given]
    if not isinstance(given, list) or not given:
        raise Refused("Invalid type for 'input': expected a string or a non-empty array.", param="input", code="invalid_type")
    texts: list[str] = []
    for number, item in enumerate(given):
        where = f"input[{number}]"
        if not isinstance(item, dict):
            raise Refused(f"Invalid type for '{where}': expected an object.", param=where, code="invalid_type")
        if item.get("type", "message") == "message":
            if item.get("role") not in ("user", "assistant", "system", "developer"):
                raise Refused(f"Invalid value: '{item.get('role')}' for '{where}.role'.", param=f"{where}.role")
            texts += _texts(
                item.get("content"), f"{where}.content", {"input_text", "output_text", "input_image", "input_file", "refusal"}
            )
    return texts


def responses(payload: Payload, name: str) -> Answer:
    """POST /v1/responses, plain and with its typed events."""
    known_only(payload, RESPONSE_KEYS)
    require(payload, "model", str, needed=True)
    require(payload, "stream", bool)
    require(payload, "temperature", (int, float), low=0, high=2)
    limit = require(payload, "max_output_tokens", int, low=16)
    texts = _response_texts(payload.get("input"))
    answer, _ = _clip(f"served by {name}", limit)
    answer_id, item_id = new_id("resp_"), new_id("msg_")
    sent, received = tokens(*texts, str(payload.get("instructions") or "")), tokens(answer)
    usage = {
        "input_tokens": sent, "input_tokens_details": {"cached_tokens": 0}, "output_tokens": received,
        "output_tokens_details": {"reasoning_tokens": 0}, "total_tokens": sent + received,
    }  # fmt: skip
    part = {"type": "output_text", "text": answer, "annotations": [], "logprobs": []}
    item = {"id": item_id, "type": "message", "status": "completed", "role": "assistant", "content": [part]}
    started = {
        "id": answer_id, "object": "response", "created_at": int(time.time()), "status": "in_progress", "error": None,
        "incomplete_details": None, "instructions": payload.get("instructions"), "max_output_tokens": limit, "metadata": {},
        "model": payload["model"], "output": [], "parallel_tool_calls": True, "previous_response_id": None,
        "reasoning": {"effort": None, "summary": None}, "store": True, "temperature": payload.get("temperature", 1.0),
        "text": {"format": {"type": "text"}}, "tool_choice": "auto", "tools": payload.get("tools") or [], "top_p": 1.0,
        "truncation": "disabled", "usage": None, "user": None,
    }  # fmt: skip
    body = {**started, "status": "completed", "output": [item], "usage": usage}
    at = {"item_id": item_id, "output_index": 0, "content_index": 0}
    empty = {**part, "text": ""}
    steps: list[tuple[str, Payload]] = [
        ("response.created", {"response": started}),
        ("response.in_progress", {"response": started}),
        ("response.output_item.added", {"output_index": 0, "item": {**item, "status": "in_progress", "content": []}}),
        ("response.content_part.added", {**at, "part": empty}),
        *(("response.output_text.delta", {**at, "delta": piece, "logprobs": []}) for piece in pieces(answer)),
        ("response.output_text.done", {**at, "text": answer, "logprobs": []}),
        ("response.content_part.done", {**at, "part": part}),
        ("response.output_item.done", {"output_index": 0, "item": item}),
        ("response.completed", {"response": body}),
    ]
    events = tuple(event({"type": kind, "sequence_number": n, **data}, kind) for n, (kind, data) in enumerate(steps))
    failed = {
        "type": "error",
        "sequence_number": len(events),
        "code": "server_error",
        "message": f"{name} failed",
        "param": None,
    }
    return Answer(answer_id, body, events, event(failed, "error"))


def embeddings(payload: Payload, name: str) -> Answer:
    """POST /v1/embeddings: a vector that depends on the text alone, unit length, `dimensions` (8) numbers."""
    known_only(payload, EMBEDDING_KEYS)
    require(payload, "model", str, needed=True)
    given = require(payload, "input", (str, list), needed=True)
    if not given:
        raise Refused("Invalid 'input': it must not be empty.", param="input")
    size = require(payload, "dimensions", int, low=1, high=4096) or 8
    form = require(payload, "encoding_format", str)
    if form not in (None, "float", "base64"):
        raise Refused(f"Invalid value: '{form}'. Supported values are: 'float' and 'base64'.", param="encoding_format")
    if isinstance(given, list) and not all(isinstance(entry, type(given[0])) for entry in given):
        raise Refused("Invalid 'input': entries of different types.", param="input")
    texts = [str(entry) for entry in given] if isinstance(given, list) and not isinstance(given[0], int) else [str(given)]
    data = []
    for index, text in enumerate(texts):
        raw = [byte - 127.5 for byte in hashlib.shake_256(text.encode()).digest(size)]
        norm = sum(x * x for x in raw) ** 0.5
        vector: Any = [x / norm for x in raw]
        if form == "base64":
            vector = base64.b64encode(struct.pack(f"<{size}f", *vector)).decode()
        data.append({"object": "embedding", "index": index, "embedding": vector})
    count = tokens(*texts)
    body = {"object": "list", "model": payload["model"], "data": data, "usage": {"prompt_tokens": count, "total_tokens": count}}
    return Answer(new_id("embd-"), body)


def models(name: str) -> Payload:
    """GET /v1/models."""
    return {"object": "list", "data": [{"id": f"{name}-model", "object": "model", "created": 1_700_000_000, "owned_by": name}]}


def moderations(payload: Payload, name: str) -> Answer:
    """POST /v1/moderations: flags texts that hold the word `forbidden`."""
    given = require(payload, "input", (str, list), needed=True)
    texts = given if isinstance(given, list) else [given]
    flags = ["forbidden" in str(text) for text in texts]
    results = [
        {
            "flagged": flag,
            "categories": {"violence": flag},
            "category_scores": {"violence": 0.9 if flag else 0.1},
            "category_applied_input_types": {"violence": ["text"]},
        }
        for flag in flags
    ]
    answer_id = new_id("modr-")
    return Answer(answer_id, {"id": answer_id, "model": payload.get("model") or f"{name}-moderation", "results": results})


def images(payload: Payload, name: str) -> Answer:
    """POST /v1/images/generations: a one-pixel PNG for each of `n`."""
    require(payload, "prompt", str, needed=True)
    pixel = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
    data = [
        {"b64_json": pixel, "revised_prompt": f"served by {name}"}
        for _ in range(require(payload, "n", int, low=1, high=10) or 1)
    ]
    usage = {
        "input_tokens": 1,
        "output_tokens": 1,
        "total_tokens": 2,
        "input_tokens_details": {"image_tokens": 0, "text_tokens": 1},
    }
    return Answer(new_id("img-"), {"created": int(time.time()), "data": data, "usage": usage})


def speech(payload: Payload, name: str) -> Answer:
    """POST /v1/audio/speech: bytes, as an MP3 would come."""
    require(payload, "model", str, needed=True)
    require(payload, "input", str, needed=True)
    return Answer(new_id("aud-"), b"ID3" + f"served by {name}".encode(), media_type="audio/mpeg")


def transcription(payload: Payload, name: str) -> Answer:
    """POST /v1/audio/transcriptions (multipart; `payload` is the form's fields, `file` the number of bytes)."""
    require(payload, "model", str, needed=True)
    require(payload, "file", int, low=1, needed=True)
    return Answer(new_id("trn-"), {"text": f"served by {name}", "usage": {"type": "duration", "seconds": 1}})


def rerank(payload: Payload, name: str) -> Answer:
    """POST /v1/rerank in Jina's and vLLM's shape: documents by how many words they share with the query."""
    query = set(require(payload, "query", str, needed=True).lower().split())
    documents = require(payload, "documents", list, needed=True)
    texts = [d if isinstance(d, str) else str(d.get("text")) for d in documents]
    scored = sorted(((len(query & set(t.lower().split())) / max(1, len(query)), -i) for i, t in enumerate(texts)), reverse=True)
    results = [{"index": -i, "document": {"text": texts[-i]}, "relevance_score": score} for score, i in scored]
    count, answer_id = tokens(*texts), new_id("rerank-")
    body = {"id": answer_id, "model": payload.get("model"), "usage": {"total_tokens": count, "prompt_tokens": count}}
    return Answer(answer_id, {**body, "results": results[: payload.get("top_n") or len(results)]})
