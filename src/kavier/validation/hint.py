"""What a difference at the very start of a replay points to: a setting other than it was recorded with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_BATCH = "--max-num-batched-tokens, --max-num-seqs or --long-prefill-token-threshold"
_CAUSES = {
    "sched": _BATCH,
    "prefill_tokens": _BATCH,
    "decodes": _BATCH,
    "dt": "--step-time",
    "free": "--num-gpu-blocks or --block-size",
}
"""Field of a step -> the flags it depends on; what comes first is the cause of what follows."""


def hint(
    replayed: Mapping[str, Any], recorded: Mapping[str, Any], fields: tuple[str, ...], num_gpu_blocks: int
) -> str | None:
    """Which flags to look at.

    Args:
        replayed: Our first step.
        recorded: The recorded one.
        fields: Which of their fields differ.
        num_gpu_blocks: What ours had.
    """
    field = next((name for name in _CAUSES if name in fields), None)
    if field is None:
        return None
    text = f"They differ from the first step on: was it recorded with another {_CAUSES[field]}?"
    if field == "free":
        blocks = num_gpu_blocks + recorded["free"] - replayed["free"]
        text += f" At this --block-size, --num-gpu-blocks {blocks} leaves as many blocks free."
    return text
