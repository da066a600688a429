"""Bytes and FLOPs a second behind a measured power, counted by the model code that prices steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace

import numpy as np
from numpy.typing import NDArray

from kavier.ecosystem.gpu import GpuSpec, find_gpu
from kavier.ecosystem.model import Attention, Layer, Mlp, ModelSpec
from kavier.ecosystem.models import find_model
from kavier.errors import InputError
from kavier.metrics.power import peak_flops_per_s
from kavier.scenario import Engine
from kavier.timing.datasheet import DatasheetTiming
from kavier.timing.step import StepWork
from kavier.validation.ml_energy import PowerPoint

BUDGET_TOKENS = 8192
"""max-num-batched-tokens of all runs."""


@dataclass(frozen=True, slots=True)
class Served:
    """A model as it was measured.

    Attributes:
        spec: Its transformer layers, head and embedding.
        more_parameters: In blocks that a `ModelSpec` cannot have, in 16 bits.
        state_values: Values in 32 bits that one request keeps in them, and every token reads and writes.
    """

    spec: ModelSpec
    more_parameters: int = 0
    state_values: int = 0


def _nemotron(name: str, hidden: int, width: int, mlps: int, attentions: int, mambas: int) -> Served:
    """Blocks are an MLP (two matrices), attention, or Mamba-2 (128 heads x 80, state 128, 8 groups) alone.

    An attention and an MLP are counted as a layer, all other blocks beside them. The state is in float32, as
    the runs set it (mamba-ssm-cache-dtype).
    """
    layer = Layer(Attention("gqa", heads=40, kv_heads=8, head_dim=128), Mlp(width, matrices=2))
    spec = ModelSpec(
        name,
        "nemotron_h",
        hidden,
        131072,
        (layer,) * attentions,
        tie_word_embeddings=False,
        max_model_len=131072,
    )
    inner, state, groups = 128 * 80, 128, 8
    # Into gate, inputs, both projections of the state and the heads' steps; and back out.
    mamba = hidden * (2 * inner + 2 * groups * state + 128) + inner * hidden
    others = mambas * mamba + (mlps - attentions) * 2 * hidden * width
    return Served(spec, more_parameters=others, state_values=mambas * inner * state)


def _llama4(name: str, experts: int, dense_layers: int) -> ModelSpec:
    """48 layers; experts and a shared one of the same width, top 1. Chunks of 8,192 tokens hold all of it."""
    attention = Attention("gqa", heads=40, kv_heads=8, head_dim=128)
    sparse = Mlp(8192, experts=experts, experts_per_token=1, shared_intermediate_size=8192)
    dense = Layer(attention, Mlp(16384))
    layers = (dense,) * dense_layers + (Layer(attention, sparse),) * (48 - dense_layers)
    return ModelSpec(name, "llama4", 5120, 202048, layers, tie_word_embeddings=False, max_model_len=1048576)


def _maverick_fp8() -> Served:
    """Experts on every second layer; the routed ones alone are in fp8."""
    spec = _llama4("Llama-4-Maverick-FP8", experts=128, dense_layers=24)
    return Served(replace(spec, weight_dtype="fp8", quantized_roles=frozenset({"expert"})))


def _llama_405b_fp8() -> Served:
    """Of the published fp8 checkpoint (fbgemm_fp8) only MLPs are in fp8: all self_attn modules are excepted.

    Its first and last MLP, which are excepted too, are counted as fp8: 2 of 126.
    """
    spec = find_model("meta-llama/Llama-3.1-405B-Instruct")
    return Served(replace(spec, weight_dtype="fp8", quantized_roles=frozenset({"mlp"})))


TYPED: Mapping[str, Callable[[], Served]] = {
    "nvidia/NVIDIA-Nemotron-Nano-9B-v2": lambda: _nemotron("Nemotron-Nano-9B-v2", 4480, 15680, 25, 4, 27),
    "nvidia/NVIDIA-Nemotron-Nano-12B-v2": lambda: _nemotron("Nemotron-Nano-12B-v2", 5120, 20480, 28, 6, 28),
    "meta-llama/Llama-4-Scout-17B-16E-Instruct": lambda: Served(_llama4("Llama-4-Scout", 16, 0)),
    "meta-llama/Llama-4-Maverick-17B-128E-Instruct-FP8": _maverick_fp8,
    "meta-llama/Llama-3.1-405B-Instruct-FP8": _llama_405b_fp8,
}
"""Models that the simulator does not serve, typed in to count their work.

Sources, read 2026-11-28. Nemotron: config.json of nvidia/NVIDIA-Nemotron-Nano-9B-v2 and 12B-v2-Base (56 and
62 blocks of hybrid_override_pattern) as quoted by public repositories, and github.com/NVIDIA-AI-IOT/
jetson-generative-ai-playground (27 Mamba, 25 MLP, 4 attention). Llama 4: config.json of
meta-llama/Llama-4-Scout-17B-16E and Maverick-17B-128E as quoted by public repositories; which weights of the
FP8 models are in fp8 was not re-read.
"""

FAMILIES = {
    "Qwen3-235B": "Qwen3-235B-A22B",
    "Qwen3-30B": "Qwen3-30B-A3B",
    "Qwen3-Coder-30B": "Qwen3-30B-A3B",
    "NVIDIA-Nemotron-Nano": "Nemotron-Nano",
}
"""How names of a family begin, behind the organisation; any other model is a family of its own."""


def family_of(model: str) -> str:
    """The family that is left out together."""
    short = model.rpartition("/")[2]
    return next((family for start, family in FAMILIES.items() if short.startswith(start)), short)


def served_model(point: PowerPoint) -> Served:
    """The model of a point.

    Raises:
        InputError: Neither in the catalog nor in `TYPED`.
    """
    if point.model in TYPED:
        return TYPED[point.model]()
    try:
        return Served(find_model(point.model))
    except InputError as error:
        raise InputError(str(error), where=point.where) from None


@dataclass(frozen=True, slots=True)
class Work:
    """What the GPUs of the points do and draw; arrays of one number a point, of ONE GPU.

    Attributes:
        points: In this order.
        mbu: Bytes a second / bandwidth.
        mfu: FLOPs a second / peak of the precisions that they are computed in.
        bytes_per_s: Bytes.
        flops_per_s: FLOPs, those in fewer bits counted as so many in 16 bits as take the same time.
        tdp_w: Board limits.
        idle_w: Idle power with a loaded model.
        power_w: Measured.
        families: Of the models.
    """

    points: list[PowerPoint]
    mbu: NDArray[np.float64]
    mfu: NDArray[np.float64]
    bytes_per_s: NDArray[np.float64]
    flops_per_s: NDArray[np.float64]
    tdp_w: NDArray[np.float64]
    idle_w: NDArray[np.float64]
    power_w: NDArray[np.float64]
    families: NDArray[np.str_]

    def of(self, chosen: NDArray[np.bool_]) -> Work:
        """Some of the points."""
        arrays = {name: getattr(self, name)[chosen] for name in _ARRAYS}
        return replace(self, points=[self.points[i] for i in np.flatnonzero(chosen)], **arrays)


_ARRAYS = [field.name for field in fields(Work) if field.name != "points"]


def work_of(points: list[PowerPoint]) -> Work:
    """Count the work of measured points.

    Raises:
        InputError: An unknown model or GPU, with file and line.
    """
    timings: dict[tuple[str, str, int], tuple[Served, GpuSpec, DatasheetTiming]] = {}
    rows = []
    for point in points:
        key = (point.model, point.gpu, point.gpus)
        if key not in timings:
            timings[key] = _timing(point)
        served, gpu, timing = timings[key]
        rows.append(_rates(point, served, gpu, timing))
    mbu, mfu, bytes_per_s, flops_per_s, tdp_w, idle_w = np.array(rows).T
    return Work(
        points,
        mbu,
        mfu,
        bytes_per_s,
        flops_per_s,
        tdp_w,
        idle_w,
        power_w=np.array([point.power_w for point in points]),
        families=np.array([family_of(point.model) for point in points]),
    )


def _timing(point: PowerPoint) -> tuple[Served, GpuSpec, DatasheetTiming]:
    """Tables that know the FLOPs and bytes of a step; their times are not used.

    Experts spread over GPUs read and compute, on the mean GPU, what experts split over them do.
    """
    served = served_model(point)
    try:
        gpu = find_gpu(point.gpu)
    except InputError as error:
        raise InputError(str(error), where=point.where) from None
    engine = Engine(
        tensor_parallel_size=point.gpus, max_num_seqs=BUDGET_TOKENS, max_num_batched_tokens=BUDGET_TOKENS
    )
    return served, gpu, DatasheetTiming(served.spec, gpu, engine)


def _rates(point: PowerPoint, served: Served, gpu: GpuSpec, timing: DatasheetTiming) -> tuple[float, ...]:
    """(MBU, MFU, bytes/s, FLOP/s, TDP, idle power) of one GPU.

    Every running request gets a token a step, so there are tokens_per_s / batch steps a second. A new
    request's prompt is computed in one of them, together with the decodes.
    """
    steps_per_s = point.tokens_per_s / point.batch
    prompts = point.tokens_per_s / point.output_tokens / steps_per_s  # a step, on average
    mixed = min(prompts, 1.0)  # share of steps with prompts
    plain_cost = _cost(point, served, timing, 0.0)
    mixed_cost = _cost(point, served, timing, prompts / mixed)
    flops_per_s, bytes_per_s = steps_per_s * ((1.0 - mixed) * plain_cost + mixed * mixed_cost)
    peak = peak_flops_per_s(gpu, served.spec)
    return (
        bytes_per_s / gpu.bandwidth_bytes_per_s,
        flops_per_s / peak,
        bytes_per_s,
        flops_per_s * gpu.flops_per_s["bf16"] / peak,
        gpu.tdp_w,
        gpu.loaded_idle_w,
    )


def _cost(point: PowerPoint, served: Served, timing: DatasheetTiming, prompts: float) -> NDArray[np.float64]:
    """(FLOPs, bytes) of a step of all running requests, of which some compute their prompt."""
    decodes, tokens = max(point.batch - prompts, 0.0), prompts * point.input_tokens
    work = StepWork(
        prefills=round(prompts),
        prefill_tokens=round(tokens),
        prefill_pairs=round(tokens * (point.input_tokens + 1) / 2),
        prefill_context_tokens=round(tokens),
        decodes=round(decodes),
        decode_context_tokens=round(decodes * point.context_tokens),
        sampled=round(decodes + prompts),
    )
    _, flops, moved = timing.cost(work)
    cost = np.array([flops, moved])
    if served.more_parameters:
        cost += _state_cost(served, work) / point.gpus
    return cost


def _state_cost(served: Served, work: StepWork) -> NDArray[np.float64]:
    """(FLOPs, bytes) of blocks beside the layers: 2 FLOPs a parameter and 6 a state value and token.

    A state value decays, takes in the input and is read out, a multiplication and an addition each.
    """
    tokens, requests = work.decodes + work.prefill_tokens, work.decodes + work.prefills
    flops = tokens * (2.0 * served.more_parameters + 6.0 * served.state_values)
    return np.array([flops, 2.0 * served.more_parameters + requests * served.state_values * 8.0])
