"""What of a logged answer people read."""

from retuned.consumers.common import reasoning, tool_calls


def words(response: str) -> str:
    """An answer without its reasoning and its calls of tools; empty where it only calls tools, or only thought."""
    _, answer = reasoning.split(response)
    try:
        return tool_calls.read(answer)[0]
    except ValueError:  # no calls between the tags
        return answer
