"""The part of a logged answer that people read."""

from retuned.consumers.common import reasoning, tool_calls


def words(response: str) -> str:
    """Returns an answer without its reasoning and tool calls; empty if nothing else is in it."""
    _, answer = reasoning.split(response)
    try:
        return tool_calls.read(answer)[0]
    except ValueError:  # the tags hold no tool calls
        return answer
