"""docs/coming-from.md: their call and ours give the same, where the other library is installed."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

import difflayers as dl

PAGE = (Path(__file__).parents[1] / "docs" / "coming-from.md").read_text()
BLOCK = re.compile(r"^```(python|py)(?: [^\n]*)?\n(.*?)^```", re.MULTILINE | re.DOTALL)
BEGINNING, *SECTIONS = re.split(r"^## ", PAGE, flags=re.MULTILINE)
SECTION = {section.partition("\n")[0]: section for section in SECTIONS}
MODULES = {
    "diffsort": "diffsort",
    "torchsort": "torchsort",
    "reinmax": "reinmax",
    "PyEPO": "pyepo.model.ort",
    "cvxpylayers": "cvxpylayers.torch",
    "Torch-Pruning": "torch_pruning",
}
pytestmark = pytest.mark.filterwarnings("ignore")  # theirs


def run(text: str, names: dict[str, Any], *languages: str) -> dict[str, Any]:
    """Runs the blocks of a section in turn."""
    for language, code in BLOCK.findall(text):
        if language in languages:
            exec(compile(code, "docs/coming-from.md", "exec"), names)
    return names


def beginning() -> dict[str, Any]:
    return run(BEGINNING, {"__name__": "snippet"}, "python")


def test_every_section_is_tested() -> None:
    assert set(SECTION) == {*MODULES, "SoftTorch", "kornia, OpenCV, PoseLib"}


@pytest.mark.parametrize("peer", [name for name in MODULES if name != "reinmax"])
def test_same_numbers(peer: str) -> None:
    pytest.importorskip(MODULES[peer], exc_type=ImportError)
    names = run(SECTION[peer], beginning(), "py", "python")
    torch.testing.assert_close(names["ours"], names["theirs"], rtol=1e-4, atol=1e-4)


def test_softtorch() -> None:
    """Against what its README prints."""
    names = run(SECTION["SoftTorch"], beginning(), "python")
    printed = re.findall(r"^# \[(.*)\]$", SECTION["SoftTorch"], re.MULTILINE)
    for name, numbers in zip(("softsort", "network"), printed, strict=True):
        expected = torch.tensor([float(number) for number in numbers.split(",")])
        torch.testing.assert_close(names[name], expected, rtol=0, atol=1e-4)


def test_reinmax() -> None:
    """Samples differ; the gradient of the same sample of the same logits does not."""
    pytest.importorskip("reinmax")
    theirs, ours = SECTION["reinmax"].split("```python")
    names, weights = beginning(), torch.randn(8)
    names["x"] = torch.randn(8).expand(400, 8)
    gradients = []
    for text in (theirs, "```python" + ours):
        found = run(text, names, "py", "python")
        (by_logits,) = torch.autograd.grad((found["sample"] @ weights).square().sum(), found["logits"])
        chosen = found["sample"].argmax(-1)
        gradients.append({c: by_logits[chosen == c][0] for c in chosen.unique().tolist()})
    common = gradients[0].keys() & gradients[1].keys()
    assert len(common) >= 4
    for choice in common:
        torch.testing.assert_close(gradients[1][choice], gradients[0][choice], rtol=1e-4, atol=1e-4)


def of_good(found: Any) -> float:
    """The share of the first 200 matches that are among the inliers."""
    return float(torch.as_tensor(found).flatten()[:200].double().mean())


def degrees(names: dict[str, Any], rotation: Any, translation: Any) -> float:
    """How far a pose is off."""
    pose = [torch.as_tensor(x).double() for x in (rotation, translation)]
    truth = names["turn"], torch.tensor([1.0, 0.2, 0.1], dtype=torch.float64)
    return float(dl.ransac.pose_error(pose[0], pose[1].flatten(), *truth).largest)


def parts() -> dict[str, str]:
    """The section about fitting by the library it names in bold, without the scene that all share."""
    section = SECTION["kornia, OpenCV, PoseLib"]
    return {part.partition("**")[0]: part.partition("**")[2] for part in re.split(r"^\*\*", section, flags=re.M)[1:]}


@pytest.fixture(scope="module")
def fitted() -> dict[str, Any]:
    """Our calls of all three parts, and what each of them found."""
    section = SECTION["kornia, OpenCV, PoseLib"]
    names = run(section[: section.index("**kornia")], beginning(), "python")
    for name, part in parts().items():
        run(part, names, "python")
        names[f"{name} result"] = names["result"]
    return names


def test_our_fits(fitted: dict[str, Any]) -> None:
    for name in parts():
        assert of_good(fitted[f"{name} result"].inliers) > 0.95
    assert degrees(fitted, fitted["R"], fitted["t"]) < 0.5
    rotation, translation = fitted["absolute"]  # the first camera is the origin
    assert (rotation - torch.eye(3)).abs().max() < 1e-3
    assert translation.abs().max() < 1e-2


@pytest.mark.parametrize(("peer", "module"), [("kornia", "kornia.geometry"), ("OpenCV", "cv2"), ("PoseLib", "poselib")])
def test_their_fits(fitted: dict[str, Any], peer: str, module: str) -> None:
    pytest.importorskip(module)
    names = run(parts()[peer], dict(fitted), "py")
    if peer == "kornia":
        assert of_good(names["inliers"]) > 0.95
    elif peer == "OpenCV":
        assert degrees(names, names["R"], names["t"]) < 5
    else:
        assert (torch.as_tensor(names["pose"].R) - torch.eye(3)).abs().max() < 1e-3
