"""Conversations as prompts, by the template that a chat model's tokenizer brings."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from typing import Any


def is_chat(prompts: Any) -> bool:
    """Whether a prompt is a conversation: dicts with "role" and "content"."""
    return (
        isinstance(prompts, (list, tuple))
        and bool(prompts)
        and all(isinstance(message, dict) and {"role", "content"} <= set(message) for message in prompts)
    )


def has_template(tokenizer: Any) -> bool:
    """Whether the tokenizer knows how a conversation is written."""
    return bool(getattr(tokenizer, "settings", {}).get("chat_template"))


def chat_ids(tokenizer: Any, messages: Sequence[dict[str, Any]]) -> list[int]:
    """Ids of a conversation up to where the answer begins.

    The template comes with the checkpoint, so it is not trusted: it runs in Jinja's sandbox, and may change nothing.

    Args:
        tokenizer: A `keras_tfm.data.Tokenizer` with a chat_template in its settings.
        messages: {"role": "system", "user" or "assistant", "content": text}, in order.

    Raises:
        ValueError: without a template, and for conversations that the template refuses.
        ImportError: without the extra `chat`.
    """
    if not has_template(tokenizer):
        raise ValueError(
            "The tokenizer has no chat_template, so it does not say how a conversation is written. Give the prompt as text."
        )
    try:
        from jinja2.exceptions import TemplateError
        from jinja2.sandbox import ImmutableSandboxedEnvironment
    except ImportError as error:
        raise ImportError('Chat templates need Jinja: pip install "keras_tfm[chat]".') from error
    settings = tokenizer.settings
    template = settings["chat_template"]
    if isinstance(template, list):  # several, by name
        template = next((each["template"] for each in template if each.get("name") == "default"), None)

    def refuse(message: str) -> None:
        raise TemplateError(message)

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.globals |= {
        "raise_exception": refuse,
        "strftime_now": lambda form: datetime.datetime.now().strftime(form),
    }
    named = {name: settings.get(name) for name in ("bos_token", "eos_token", "unk_token", "pad_token")}
    special = {name: token.get("content") if isinstance(token, dict) else token for name, token in named.items()}
    try:
        text = environment.from_string(template).render(
            messages=list(messages), add_generation_prompt=True, **{k: v for k, v in special.items() if v is not None}
        )
    except TemplateError as error:
        raise ValueError(f"The chat template refuses this conversation: {error}") from error
    return list(tokenizer.tokenizer.encode(text, add_special_tokens=False).ids)
