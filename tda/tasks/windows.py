"""Windows of a rolling log-likelihood: a prompt, and the tokens that are scored after it."""

from collections.abc import Sequence

PROMPT_TOKENS, NEW_TOKENS = 256, 128
"""Where none are asked for."""


def windows_within(context: int, prompt_tokens: int | None, new_tokens: int | None) -> tuple[int, int]:
    """Tokens of a prompt at most and tokens scored after it, as asked for or as a context holds them.

    Raises
    ------
    ValueError
        If they are no numbers of tokens, or need more positions than there are.
    """
    for name, count in (("prompt_tokens", prompt_tokens), ("new_tokens", new_tokens)):
        if count is not None and (not isinstance(count, int) or count < 1):
            raise ValueError(f"{name} is a number of tokens, at least 1; got {count!r}")
    new = min(NEW_TOKENS, max(1, context // 2)) if new_tokens is None else new_tokens
    prompt = max(1, min(PROMPT_TOKENS, context + 1 - new)) if prompt_tokens is None else prompt_tokens
    if prompt + new > context + 1:
        raise ValueError(
            f"windows of {prompt} and {new} tokens (prompt_tokens, new_tokens) need {prompt + new - 1} positions, "
            f"and the model has {context}"
        )
    return prompt, new


def cut(prefix: int, tokens: Sequence[int], windows: tuple[int, int]) -> list[tuple[list[int], list[int]]]:
    """Prompts and continuations of a text behind a prefix token: every token is predicted once."""
    prompt, new = windows
    whole = [prefix, *tokens]
    starts = range(1, len(whole), new)
    return [(whole[max(0, start - prompt) : start], whole[start : start + new]) for start in starts]
