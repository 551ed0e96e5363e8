"""What a wheel of difflayers contains: its files, whose code is compiled in, what it is linked to and what it needs.

`make sbom` writes it as a page and as a CycloneDX record; both come from the wheel itself, read with readelf.
"""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import tempfile
import zipfile
from email.parser import Parser
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]


class Part(NamedTuple):
    """Code of others that is in the library: what, of which version, under which licence, in which form."""

    name: str
    version: str
    licence: str
    form: str


class Library(NamedTuple):
    """What readelf says of the compiled library."""

    size: int
    linked: list[str]
    compilers: list[str]
    cuda: str | None
    needs: dict[str, str]  # newest symbol versions, by library


def version() -> str:
    """That of the package, without importing it."""
    found = re.search(r'^__version__ = "(.*)"', (ROOT / "difflayers" / "__init__.py").read_text(), re.MULTILINE)
    assert found is not None
    return found[1]


def library(wheel: Path) -> bytes | None:
    """The compiled library in a wheel, if there is one."""
    with zipfile.ZipFile(wheel) as packed:
        return packed.read("difflayers/_C.so") if "difflayers/_C.so" in packed.namelist() else None


def inspect(content: bytes) -> Library:
    """Reads the library."""
    with tempfile.NamedTemporaryFile(suffix=".so") as file:
        file.write(content)
        file.flush()

        def readelf(*options: str) -> str:
            command = ["readelf", "--wide", *options, file.name]
            return subprocess.run(command, check=True, capture_output=True, text=True).stdout

        linked = re.findall(r"\(NEEDED\).*\[(.*)\]", readelf("--dynamic"))
        compilers = re.findall(r"\]\s+(GCC: .*|.*clang version .*)", readelf("--string-dump=.comment"))
        symbols = set(re.findall(r"\b(GLIBC|GLIBCXX|CXXABI)_([0-9.]+)", readelf("--version-info")))
        has_cuda = ".nv_fatbin" in readelf("--sections")
    newest = {}
    for name, number in symbols:
        parts = tuple(map(int, number.split(".")))
        newest[name] = max(newest.get(name, ()), parts)
    release = re.search(rb"Cuda compilation tools, release [0-9.]+, V([0-9.]+)", content)
    cuda = (release[1].decode() if release else "of unknown version") if has_cuda else None
    needs = {name: ".".join(map(str, number)) for name, number in sorted(newest.items())}
    return Library(len(content), linked, compilers, cuda, needs)


def parts(found: Library) -> list[Part]:
    """Whose code is in it beside ours."""
    pins = dict(re.findall(r"^([\w-]+)==(.*)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
    compiler = re.search(r"([0-9]+\.[0-9.]+)$", found.compilers[0]) if found.compilers else None
    result = [
        Part("PyTorch", pins["torch"], "BSD-3-Clause",
             "inlined from the headers of its stable C++ interface; no code of its libraries"),
        Part("libstdc++", compiler[1] if compiler else "of the compiler", "GPL-3.0-or-later WITH GCC-exception-3.1",
             "templates and inline functions of its headers"),
    ]  # fmt: skip
    if found.cuda:
        result.append(
            Part("CUDA runtime and device libraries", found.cuda, "LicenseRef-NVIDIA-CUDA-EULA",
                 "linked statically (libcudart_static, libdevice); attachment A of the toolkit's EULA "
                 "lists what may be distributed"))  # fmt: skip
    return result


def _metadata(wheel: Path) -> Any:
    with zipfile.ZipFile(wheel) as packed:
        (name,) = (name for name in packed.namelist() if name.endswith(".dist-info/METADATA"))
        return Parser().parsestr(packed.read(name).decode())


def requirements(wheel: Path) -> dict[str, list[str]]:
    """What is installed beside it: "" = always, or the extra that asks for it."""
    result: dict[str, list[str]] = {"": []}
    for line in _metadata(wheel).get_all("Requires-Dist", []):
        requirement, _, marker = line.partition(";")
        extra = re.search(r"extra == [\"'](\w+)[\"']", marker)
        result.setdefault(extra[1] if extra else "", []).append(requirement.strip())
    return result


def _table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def page(wheel: Path) -> str:
    """The list as Markdown; how many files and which hashes is in the record, which is made anew for every wheel."""
    content = library(wheel)
    kinds = ["Python modules", "`py.typed`", "the compiled library `_C.so`"][: 2 if content is None else 3]
    text = [
        "# What is bundled",
        f"Written by `make sbom` from `{wheel.name}`, which leaves it as a CycloneDX record beside the wheel too.",
        f"It holds {', '.join(kinds)}, the licence (MIT) and pip's metadata. All of it is difflayers' own, but for "
        "what the next section names.",
        "## Compiled in",
    ]
    if content is None:
        text.append("Nothing: this wheel was built without kernels.")
    else:
        found = inspect(content)
        text += [
            "`difflayers/_C.so` is built from `csrc/`, in which there is no file of others. These are in it besides:",
            _table(["what", "version", "licence", "how"], [list(part) for part in parts(found)]),
            "It is linked to these libraries, which are not in the wheel: "
            + ", ".join(f"`{name}`" for name in found.linked)
            + ". The newest symbols that it asks for are "
            + ", ".join(f"{name} {number}" for name, number in found.needs.items())
            + ".",
            f"Compilers that left their name in it: {', '.join(found.compilers)}. The wheel's tag is `linux`, not "
            "`manylinux`: it runs where these libraries are as new as those here.",
        ]
    text += ["## Installed beside it", "None of these is in the wheel; each has its own licence.",
             _table(["with", "what"], [[f"`[{extra}]`" if extra else "every installation", ", ".join(names)]
                                       for extra, names in requirements(wheel).items()])]  # fmt: skip
    return "\n\n".join(text) + "\n"


def cyclonedx(wheel: Path) -> str:
    """The list in CycloneDX 1.6."""
    number, content = version(), library(wheel)
    identity = f"pkg:pypi/difflayers@{number}"
    components: list[dict[str, Any]] = []
    for part in parts(inspect(content)) if content is not None else []:
        licence = (
            {"license": {"name": part.licence}}
            if part.licence.startswith("LicenseRef")
            else {"expression": part.licence}
        )
        components.append({"type": "library", "bom-ref": part.name, "name": part.name, "version": part.version,
                           "scope": "required", "licenses": [licence], "description": part.form})  # fmt: skip
    for extra, names in requirements(wheel).items():
        for requirement in names:
            name = re.match(r"[\w.-]+", requirement)
            assert name is not None
            components.append({"type": "library", "bom-ref": f"{requirement} [{extra}]", "name": name[0],
                               "purl": f"pkg:pypi/{name[0].lower()}", "scope": "optional" if extra else "required",
                               "description": f"not bundled; asked for as {requirement}"})  # fmt: skip
    with zipfile.ZipFile(wheel) as packed:
        files = [{"type": "file", "name": info.filename,
                  "hashes": [{"alg": "SHA-256", "content": hashlib.sha256(packed.read(info)).hexdigest()}]}
                 for info in packed.infolist()]  # fmt: skip
    record = {
        "bomFormat": "CycloneDX", "specVersion": "1.6", "version": 1,
        "metadata": {"component": {
            "type": "library", "bom-ref": identity, "name": "difflayers", "version": number, "purl": identity,
            "licenses": [{"expression": "MIT"}], "components": files,
            "hashes": [{"alg": "SHA-256", "content": hashlib.sha256(wheel.read_bytes()).hexdigest()}],
        }},
        "components": components,
        "dependencies": [{"ref": identity, "dependsOn": [component["bom-ref"] for component in components]}],
    }  # fmt: skip
    return json.dumps(record, indent=1) + "\n"
