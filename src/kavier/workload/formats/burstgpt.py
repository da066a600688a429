"""BurstGPT traces (github.com/HPMLL/BurstGPT): columns differ between versions, so by name."""

from __future__ import annotations

from kavier.workload.columns import OPTIONAL_TEXT, SECONDS, TOKENS
from kavier.workload.formats.source import Format, TraceFile
from kavier.workload.table import Workload, make_workload

_HEADER = ("Timestamp", "Request tokens", "Response tokens")
_RULES = {
    "Timestamp": SECONDS,
    "Request tokens": TOKENS,
    "Response tokens": TOKENS,
    "Model": OPTIONAL_TEXT,
    "Session ID": OPTIONAL_TEXT,
}
_NAMES = {
    "Timestamp": "arrival_s",
    "Request tokens": "prompt_tokens",
    "Response tokens": "output_tokens",
    "Model": "model",
    "Session ID": "session_id",
}


def _read(file: TraceFile) -> Workload:
    frame = file.table(_RULES).rename(_NAMES, strict=False)
    return make_workload(frame, source=str(file.path), format="burstgpt", place=file.place)


FORMAT = Format("burstgpt", "CSV with " + ", ".join(_HEADER), (_HEADER,), _read)
