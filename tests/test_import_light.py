"""What starts without the heavy packages: `import kavier`, `kavier --help`, `kavier --version`."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

HEAVY = {"numpy", "polars", "pydantic", "rich", "numba", "yaml"}

LIST_MODULES = """
import atexit, json, sys
atexit.register(lambda: print(json.dumps(sorted(sys.modules)), file=sys.stderr))
"""


def modules_after(code, *arguments) -> set[str]:
    """Top-level names of what a fresh interpreter has imported when it ends."""
    command = [sys.executable, "-c", LIST_MODULES + code, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return {name.partition(".")[0] for name in json.loads(done.stderr.splitlines()[-1])}


@pytest.mark.parametrize(
    "code",
    [
        "import kavier; kavier.__version__",
        "import kavier; dir(kavier)",
        "import kavier; kavier.InputError",
        "import kavier.cli.main",
    ],
)
def test_importing_kavier_is_light(code):
    assert not modules_after(code) & HEAVY


@pytest.mark.parametrize("arguments", [["--help"], ["--version"]])
def test_help_is_light(arguments):
    found = modules_after("from kavier.cli.main import main; main()", *arguments)
    assert "kavier" in found
    assert not found & HEAVY


@pytest.mark.parametrize("command", ["run", "workload", "catalog", "explain"])
def test_help_of_a_command_brings_only_what_typer_brings(command):
    """typer itself imports pydantic to describe parameters."""
    found = modules_after("from kavier.cli.main import main; main()", command, "--help")
    assert not found & (HEAVY - {"pydantic"})


def test_the_check_itself_sees_a_heavy_import():
    assert {"numpy", "polars", "pydantic"} <= modules_after("import kavier; kavier.simulate")


def test_the_command_is_the_same_as_the_module():
    helps = [
        subprocess.run([sys.executable, *how, "--help"], capture_output=True, text=True, check=True).stdout
        for how in (["-m", "kavier"], ["-c", "from kavier.cli.main import main; main()"])
    ]
    assert "run" in helps[0]
    assert helps[0].split("Options")[-1] == helps[1].split("Options")[-1]
