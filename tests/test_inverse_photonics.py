"""The example of photonic design: its field solver, its brush oracle, and the comparison."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.test_examples import load

for package in ("ortools", "scipy"):
    pytest.importorskip(package)


@pytest.fixture(scope="module")
def light():
    return load("field_solver")


@pytest.fixture(scope="module")
def brush():
    return load("brush_oracle")


def ports(light, begin: int, end: int):
    return [light.Port(side, begin, end) for side in ("left", "right", "bottom")]


# --- the field ---


@pytest.mark.parametrize(("wavelength", "mode"), [(1270.0, 0), (1270.0, 1), (1550.0, 0)])
def test_a_straight_waveguide_lets_all_light_through(light, wavelength: float, mode: int) -> None:
    left, right, _ = ports(light, 4, 9)
    outlets = {mode, 0, int(wavelength < 1300)}  # at 1550 nm there is no second mode
    device = light.Device(12, tuple(light.Channel(wavelength, left, right, mode, m) for m in sorted(outlets)))
    design = np.zeros((12, 12))
    design[4:9] = 1.0
    shares = dict(zip(sorted(outlets), device.transmissions(design)[0].tolist(), strict=True))
    assert shares.pop(mode) == pytest.approx(1.0, abs=5e-4)
    assert all(share < 1e-6 for share in shares.values())


def test_the_field_solves_the_wave_equation(light) -> None:
    left, right, _ = ports(light, 2, 7)
    device = light.Device(8, (light.Channel(1290.0, left, right),))
    design = np.random.default_rng(0).random((8, 8))
    field, _ = device.fields(design, 0)
    permittivity = light.VOID + (light.SOLID - light.VOID) * device.whole(design)
    laplacian = (
        np.roll(field, 1, 0) + np.roll(field, -1, 0) + np.roll(field, 1, 1) + np.roll(field, -1, 1) - 4 * field
    ) / device.step**2
    residual = laplacian + (2 * np.pi / 1290.0) ** 2 * permittivity * field
    beyond = (slice(light.LAYER + 1, -light.LAYER - 1), slice(light.LAYER + 4, -light.LAYER - 1))  # of the source
    assert np.abs(residual[beyond]).max() < 1e-9 * np.abs(laplacian[beyond]).max()


def test_backwards_is_the_same_and_energy_is_not_made(light) -> None:
    left, right, bottom = ports(light, 3, 8)
    there = light.Device(10, tuple(light.Channel(1290.0, left, port, 0, m) for port in (right, bottom) for m in (0, 1)))
    back = light.Device(10, (light.Channel(1290.0, right, left, 0, 0), light.Channel(1290.0, bottom, left, 0, 0)))
    design = (np.random.default_rng(1).random((10, 10)) > 0.4).astype(float)
    shares = there.transmissions(design)[0]
    assert 0.01 < shares.sum() < 1.0
    np.testing.assert_allclose(back.transmissions(design)[0], shares[::2], rtol=1e-6)


def test_gradient_is_that_of_finite_differences(light) -> None:
    left, right, bottom = ports(light, 2, 7)
    device = light.Device(8, (light.Channel(1310.0, left, bottom), light.Channel(1270.0, left, right, 0, 1)))
    designs = torch.rand(2, 8, 8, dtype=torch.float64, requires_grad=True)
    weights = torch.tensor([[1.0, -2.0], [0.5, 3.0]], dtype=torch.float64)
    (light.transmission(designs, device) * weights).sum().backward()
    direction = torch.randn(2, 8, 8, dtype=torch.float64)
    with torch.no_grad():
        values = [(light.transmission(designs + h * direction, device) * weights).sum() for h in (1e-5, -1e-5)]
    torch.testing.assert_close((designs.grad * direction).sum(), (values[0] - values[1]) / 2e-5, rtol=1e-6, atol=1e-8)
    assert light.transmission(designs[0].float(), device).dtype == torch.float32


@pytest.mark.filterwarnings("ignore")
def test_fields_are_those_of_ceviche(light) -> None:
    ceviche = pytest.importorskip("ceviche")
    left, right, bottom = ports(light, 4, 9)
    device = light.Device(12, (light.Channel(1290.0, left, right), light.Channel(1290.0, left, bottom)))
    straight, design = np.zeros((12, 12)), (np.random.default_rng(2).random((12, 12)) > 0.4).astype(float)
    straight[4:9] = 1.0
    line = device._sources[0][0].reshape(device.cells, device.cells)
    ours, theirs = [], []
    for density in (straight, design):
        permittivity = light.VOID + (light.SOLID - light.VOID) * device.whole(density)
        frequency = 2 * np.pi * 299792458.0 / 1290e-9
        solver = ceviche.fdfd_ez(frequency, device.step * 1e-9, permittivity, [light.LAYER, light.LAYER])
        _, _, field = solver.solve(line.astype(complex))
        theirs += [abs(device.amplitude(field, channel)) ** 2 for channel in (0, 1)]
        ours += device.transmissions(density)[0].tolist()
    # to the strength of the light that goes in along the straight waveguide
    np.testing.assert_allclose(np.array(ours) / ours[0], np.array(theirs) / theirs[0], rtol=2e-2, atol=1e-3)


def test_a_mode_that_does_not_exist_is_refused(light) -> None:
    left, right, _ = ports(light, 3, 5)
    with pytest.raises(ValueError, match="2 pixels does not guide mode 1"):
        light.Device(8, (light.Channel(1550.0, left, right, 1, 0),))


# --- the brush ---


def paintable(design: np.ndarray, frame: np.ndarray, stamp: list[tuple[int, int]], margin: int) -> bool:
    """By the definition, touch by touch."""
    whole = frame.astype(int).copy()
    size = len(frame) - 2 * margin
    whole[margin : margin + size, margin : margin + size] = design
    painted = np.zeros(whole.shape, dtype=bool)
    for i, j in itertools.product(range(len(frame) - margin), repeat=2):
        cells = [(i + a, j + b) for a, b in stamp]
        if len({whole[cell] for cell in cells}) == 1:
            for cell in cells:
                painted[cell] = True
    return bool(painted[margin : margin + size, margin : margin + size].all())


def test_discs(brush) -> None:
    assert [len(brush.disc(diameter)) for diameter in (1, 2, 3, 4, 5, 7)] == [1, 4, 5, 12, 21, 37]
    assert set(brush.disc(3)) == {(0, 1), (1, 0), (1, 1), (1, 2), (2, 1)}


@pytest.mark.parametrize("diameter", [2, 3])
def test_oracle_is_exact_on_all_designs_of_3x4(brush, diameter: int) -> None:
    margin = diameter - 1
    frame = np.zeros((4 + 2 * margin,) * 2)
    frame[margin : margin + 3, :margin] = 1  # a waveguide from the left
    every = np.ones((2**12, 4, 4), dtype=int)
    every[:, :3] = np.array(list(itertools.product((0, 1), repeat=12))).reshape(-1, 3, 4)
    every[:, 3] = 0
    oracle, stamp = brush.BrushDesigns(frame, diameter, effort=10.0), brush.disc(diameter)
    good = np.array([paintable(design, frame, stamp, margin) for design in every])
    assert 1 < good.sum() < len(good)
    assert [oracle.feasible(torch.from_numpy(design).double()) for design in every] == good.tolist()
    costs = torch.randn(20, 4, 4, dtype=torch.float64)
    costs[:, 3] = 100.0  # the last row is empty in all that are enumerated, and in every optimum
    result = oracle.solve_batch(costs)
    assert result.status.tolist() == [0] * 20
    best = (costs[:, None] * torch.from_numpy(every[good])).sum((2, 3)).amin(1)
    torch.testing.assert_close(result.objective, best, rtol=0, atol=1e-4)  # costs of 100 are rounded at 2^-24 of it


@pytest.mark.parametrize("diameter", [3, 4])
def test_oracle_is_feasible_and_bounded_at_size(brush, diameter: int) -> None:
    problem = load("inverse_photonics").Problem("bend", diameter)
    oracle, stamp, frame = problem.oracle, brush.disc(diameter), problem.oracle.frame
    result = oracle.solve_batch(torch.nn.functional.avg_pool2d(torch.randn(3, 20, 20), 3, 1, 1))
    assert bool((result.status <= 1).all())
    assert bool((result.bound <= result.objective + 1e-6).all())
    assert result.solutions.dtype == torch.float32
    for design in result.solutions.numpy():
        assert paintable(design.astype(int), frame, stamp, diameter - 1)


def test_oracle_on_threads_and_without_time(brush) -> None:
    frame = np.zeros((14, 14))
    costs = torch.nn.functional.avg_pool2d(torch.randn(4, 10, 10, dtype=torch.float64), 3, 1, 1)
    alone = brush.BrushDesigns(frame, 3, effort=1.0).solve_batch(costs)
    threads = brush.BrushDesigns(frame, 3, effort=1.0, workers=2).solve_batch(costs)
    torch.testing.assert_close(threads.objective, alone.objective)
    impatient = brush.BrushDesigns(frame, 3, time_limit=1e-9, on_failure="nan")
    assert impatient.solve_batch(costs).status.tolist() == [4] * 4
    impatient.time_limit = None
    first = impatient.solve(costs[0])
    impatient.time_limit = 1e-9
    assert impatient.solve_batch(costs[1]).status == 1
    torch.testing.assert_close(impatient.solve(costs[1]), first)


# --- the comparison ---


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch, "set_num_threads", lambda number: None)  # main sets it for the whole process
    return load("inverse_photonics")


def test_quick_run(example, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert example.main(["--quick", "--solves", "4", "--workers", "1", "--out", str(tmp_path / "new")]) == 0
    assert (tmp_path / "new" / "inverse_photonics.png").read_bytes()[:4] == b"\x89PNG"
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("bend")]
    assert [row[11:35].strip() for row in rows] == list(example.METHODS)
    for cells in (row[35:].split() for row in rows):  # 12.3 % -9.10 4 1.2
        assert float(cells[2]) == pytest.approx(10 * np.log10(float(cells[0]) / 100), abs=0.1)
        assert 1 <= int(cells[3]) <= 4


def test_methods_return_the_best_that_they_saw(example) -> None:
    for design in example.METHODS.values():
        problem, seen = example.Problem("converter", 3), {}
        lost = problem.lost

        def watched(designs: torch.Tensor, lost=lost, seen=seen, oracle=problem.oracle) -> torch.Tensor:
            values = lost(designs)
            for row, value in zip(designs.detach().reshape(-1, 20, 20), values.detach().reshape(-1), strict=True):
                seen[row.round().numpy().tobytes() if oracle.feasible(row) else None] = float(value)
            return values

        problem.lost = watched
        found = design(problem, 6, torch.Generator().manual_seed(0))
        seen.pop(None, None)  # densities
        assert problem.oracle.feasible(found)
        assert seen[found.numpy().tobytes()] == min(seen.values())


def test_interrupt_ends_it(example, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    transmission, calls = example.transmission, []

    def interrupted(designs: torch.Tensor, device: object) -> torch.Tensor:
        calls.append(1)
        if len(calls) > 2:
            raise KeyboardInterrupt
        return transmission(designs, device)

    monkeypatch.setattr(example, "transmission", interrupted)
    monkeypatch.setattr(example, "METHODS", {"SurCo": example.surco})  # which catches it
    assert example.main(["--quick", "--solves", "8", "--out", str(tmp_path)]) == 130


def test_a_folder_that_cannot_be_made(example, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    assert example.main(["--quick", "--out", str(tmp_path / "file" / "below")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("inverse_photonics.py: ")


@pytest.mark.parametrize(
    "options", [["--solves", "2"], ["--brush", "6"], ["--workers", "0"], ["--devices", "lens"], ["--seed", "-1"]]
)
def test_bad_options(options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        load("inverse_photonics").main(options)
    assert caught.value.code == 2
    assert options[0] in capsys.readouterr().err
