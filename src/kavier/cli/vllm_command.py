"""A command that takes its flags as vLLM's command lines spell them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from typer.core import TyperCommand

from kavier.cli.vllm_flags import why_not
from kavier.errors import InputError

_OBJECTIVE = re.compile(r"[A-Za-z0-9]+[:=](?!.*\.ya?ml$)[^/\\]*")
"""What may follow the first value of --goodput; a scenario file may, too."""


class VllmCommand(TyperCommand):
    """`--max_num_seqs` is `--max-num-seqs`, --goodput takes several values; other flags of vLLM are told."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse once all is spelled as typer has it.

        Raises:
            InputError: A flag of vLLM that Kavier does not have.
        """
        return super().parse_args(ctx, respelled(args))


def respelled(args: Iterable[str]) -> list[str]:
    """The arguments with dashes in flags, and `--goodput` before each of its values.

    Raises:
        InputError: A flag of vLLM that Kavier does not have.
    """
    spelled: list[str] = []
    flag = ""
    for arg in map(_dashed, args):
        if arg.startswith("-"):
            flag = arg.partition("=")[0]
            if why := why_not(arg):
                raise InputError(why)
        elif flag == "--goodput" and spelled[-1] != "--goodput" and _OBJECTIVE.fullmatch(arg):
            spelled.append("--goodput")
        spelled.append(arg)
    return spelled


def _dashed(arg: str) -> str:
    """Underscores of the flag's own name as dashes; keys behind a dot and values stay."""
    name = re.match(r"--[^.=]*", arg)
    return name[0].replace("_", "-") + arg[name.end() :] if name else arg
