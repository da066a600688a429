"""The only place that converts units. SI inside, pretty at the edges."""

from __future__ import annotations

S_PER_HOUR = 3600.0
J_PER_KWH = 3.6e6
MS_PER_S = 1e3
WH_PER_KWH = 1e3
PARAMETERS_PER_BILLION = 1e9
US_PER_S = 1e6
NS_PER_S = 1e9
TOKENS_PER_MILLION = 1e6
BYTES_PER_MB = 1e6
BYTES_PER_GB = 1e9
BYTES_PER_GIB = 2**30
BYTES_PER_MIB = 2**20
FLOPS_PER_TFLOPS = 1e12
PJ_PER_J = 1e12


def j_to_kwh(energy_j: float) -> float:
    """Joules to kilowatt-hours: kWh = J / 3.6e6."""
    return energy_j / J_PER_KWH


def s_to_hours(duration_s: float) -> float:
    """Seconds to hours."""
    return duration_s / S_PER_HOUR


def gb_to_bytes(size_gb: float) -> int:
    """Decimal gigabytes (10^9, as bandwidth and datasheets use them) to bytes."""
    return round(size_gb * BYTES_PER_GB)


def mb_to_bytes(size_mb: float) -> int:
    """Decimal megabytes (10^6) to bytes."""
    return round(size_mb * BYTES_PER_MB)


def gib_to_bytes(size_gib: float) -> int:
    """Binary gibibytes (2^30, as GPU drivers report memory) to bytes."""
    return round(size_gib * BYTES_PER_GIB)


def bytes_to_gib(size_bytes: float) -> float:
    """Bytes to gibibytes."""
    return size_bytes / BYTES_PER_GIB


def per_million(amount: float, tokens: float) -> float | None:
    """An amount spread over `tokens`, per million tokens; None when there are none."""
    return amount / tokens * TOKENS_PER_MILLION if tokens else None


def mib_to_bytes(size_mib: float) -> int:
    """Binary mebibytes (2^20, as GPU drivers print memory) to bytes."""
    return round(size_mib * BYTES_PER_MIB)


def tflops_to_flops(rate_tflops: float) -> float:
    """10^12 floating-point operations per second to one."""
    return rate_tflops * FLOPS_PER_TFLOPS
