"""Light in the plane: the transmission of a device between waveguides, and its gradient, by finite differences.

The field E perpendicular to the plane obeys $\\Delta E + k^2 \\varepsilon E = s$ at each wavelength. Cells are squares;
layers that absorb without reflection (a complex stretch of the coordinates, "perfectly matched") surround the plane.
Written so that the matrix A is symmetric: the field that the gradient needs, from a source at the outlet, is one more
solve with the same factors. The source excites exactly one mode of the discrete waveguide with amplitude 1.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.linalg import eigh_tridiagonal
from scipy.sparse import csc_array, diags_array, kron
from scipy.sparse.linalg import splu
from torch import Tensor

SOLID, VOID = 3.5**2, 1.5**2  # permittivity of silicon and of glass
PIXEL, FINE = 80.0, 2  # nanometres of a design's pixel, and cells along it
GAP, LAYER = 10, 12  # cells between design and absorbing layer, and in that
PADDING = GAP + LAYER


class Port(NamedTuple):
    """A waveguide that ends at the design: at its left, right or bottom side, from pixel `begin` to `end` of it."""

    side: str
    begin: int
    end: int


class Channel(NamedTuple):
    """Light of a wavelength (nanometres) that goes in at one port and is to come out at another, in given modes."""

    wavelength: float
    inlet: Port
    outlet: Port
    inlet_mode: int = 0
    outlet_mode: int = 0


class Device:
    """A square design of `pixels` pixels a side between waveguides.

    Args:
        pixels: of one side.
        channels: what the device is for.
    """

    def __init__(self, pixels: int, channels: tuple[Channel, ...]) -> None:
        self.pixels, self.channels = pixels, channels
        self.cells = pixels * FINE + 2 * PADDING
        self.step = PIXEL / FINE
        self.surroundings = np.zeros((self.cells, self.cells))
        for port in {port for channel in channels for port in (channel.inlet, channel.outlet)}:
            rows = slice(PADDING + port.begin * FINE, PADDING + port.end * FINE)
            if port.side == "bottom":
                self.surroundings[self.cells // 2 :, rows] = 1.0
            else:
                self.surroundings[rows, : self.cells // 2] += port.side == "left"
                self.surroundings[rows, self.cells // 2 :] += port.side == "right"
        self.inside = (slice(PADDING, self.cells - PADDING),) * 2
        self.surroundings[self.inside] = 0.0
        self._vacuum = {channel.wavelength: self._operator(channel.wavelength) for channel in channels}
        self._sources = [self._line(c.wavelength, c.inlet, c.inlet_mode, 2) for c in channels]
        self._monitors = [self._line(c.wavelength, c.outlet, c.outlet_mode, 2) for c in channels]

    def _operator(self, wavelength: float) -> tuple[Any, np.ndarray]:
        """The Laplacian with absorbing layers, and the factor of the permittivity; both times the stretches."""
        k = 2 * np.pi / wavelength
        depth = LAYER * self.step
        # a cubic profile that leaves exp(-16) of the energy of what is reflected at its end, at an index of 2.5
        strength = 4 * 16 / (2 * depth) / 2.5

        def stretch(position: np.ndarray) -> np.ndarray:
            into = np.maximum(LAYER - position, position - (self.cells - LAYER)).clip(min=0) / LAYER
            return 1 + 1j * strength / k * into**3

        middle, edge = stretch(np.arange(self.cells) + 0.5), 1 / stretch(np.arange(self.cells + 1.0))
        bands = [edge[1:-1], -(edge[:-1] + edge[1:]), edge[1:-1]]
        second = diags_array(bands, offsets=(-1, 0, 1)) / self.step**2
        across = diags_array(middle)
        return csc_array(kron(second, across) + kron(across, second)), k**2 * np.outer(middle, middle)

    def _line(self, wavelength: float, port: Port, order: int, offset: int) -> tuple[np.ndarray, float]:
        """A mode of a port's waveguide on a line across it, just inside the absorbing layer, and sin(beta step)."""
        inner = np.arange(LAYER, self.cells - LAYER)
        permittivity = np.full(len(inner), VOID)
        permittivity[(inner >= PADDING + port.begin * FINE) & (inner < PADDING + port.end * FINE)] = SOLID
        diagonal = (2 * np.pi / wavelength) ** 2 * permittivity * self.step**2 - 2
        last = len(inner) - 1 - order
        values, modes = eigh_tridiagonal(diagonal, np.ones(len(inner) - 1), select="i", select_range=(last, last))
        if values[0] <= (2 * np.pi / wavelength * self.step) ** 2 * VOID:
            width = port.end - port.begin
            raise ValueError(f"a waveguide of {width} pixels does not guide mode {order} at {wavelength} nm")
        cosine = 1 - values[0] / 2  # of beta times step: along the waveguide 2 cos - 2 + (beta step)^2 = 0
        line = np.zeros((self.cells, self.cells))
        at = LAYER + offset if port.side == "left" else self.cells - 1 - LAYER - offset
        line[(at, inner) if port.side == "bottom" else (inner, at)] = modes[:, 0]
        return line.ravel(), float(np.sqrt(1 - cosine**2))

    def whole(self, density: np.ndarray) -> np.ndarray:
        """A design with its waveguides, [cells, cells]."""
        full = self.surroundings.copy()
        full[self.inside] = density.repeat(FINE, 0).repeat(FINE, 1)
        return full

    def frame(self, margin: int) -> np.ndarray:
        """The waveguides, in pixels, with a margin around the design: what a brush at its edge meets."""
        first = PADDING - margin * FINE
        return self.surroundings[first : self.cells - first : FINE, first : self.cells - first : FINE]

    def fields(self, density: np.ndarray, channel: int, adjoint: bool = False) -> tuple[np.ndarray, np.ndarray]:
        """The field from the inlet, and with adjoint=True also that from the outlet, each [cells, cells]."""
        full = self.whole(density)
        laplacian, factor = self._vacuum[self.channels[channel].wavelength]
        matrix = laplacian + diags_array((factor * (VOID + (SOLID - VOID) * full)).ravel())
        # symmetric, and well away from singular for its losses: an ordering for that keeps the factors small
        factors = splu(
            matrix.tocsc(), permc_spec="MMD_AT_PLUS_A", diag_pivot_thresh=0.01, options={"SymmetricMode": True}
        )
        line, sine = self._sources[channel]
        source = 2j * sine / self.step**2 * line
        field = factors.solve(source).reshape(full.shape)
        back = factors.solve(self._monitors[channel][0].astype(complex)).reshape(full.shape) if adjoint else field
        return field, back

    def amplitude(self, field: np.ndarray, channel: int) -> complex:
        """Of the outlet's mode, whose square is the power that goes out of what came in."""
        line, out = self._monitors[channel]
        return complex(line @ field.ravel()) * np.sqrt(out / self._sources[channel][1])

    def transmissions(self, density: np.ndarray, gradient: bool = False) -> tuple[np.ndarray, np.ndarray]:
        """Shares of the power [channels], and their gradients [channels, pixels, pixels] by the density."""
        shares = np.zeros(len(self.channels))
        slopes = np.zeros((len(self.channels), self.pixels, self.pixels))
        for channel, (wavelength, *_) in enumerate(self.channels):
            field, back = self.fields(density, channel, gradient)
            amplitude = self.amplitude(field, channel)
            shares[channel] = abs(amplitude) ** 2
            if gradient:
                # A E = s, so dE = -A^-1 dA E: the outlet sees -back dA field, with dA = k^2 (SOLID - VOID) d density
                k = 2 * np.pi / wavelength
                each = -(k**2) * (SOLID - VOID) * (back * field)[self.inside]
                each = each.reshape(self.pixels, FINE, self.pixels, FINE).sum((1, 3))
                scale = np.sqrt(self._monitors[channel][1] / self._sources[channel][1])
                slopes[channel] = 2 * (np.conj(amplitude) * scale * each).real
        return shares, slopes


class _Transmission(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, densities: Tensor, device: Device) -> Tensor:
        lead = densities.shape[:-2]
        rows = densities.detach().reshape(-1, device.pixels, device.pixels).cpu().double().numpy()
        found = [device.transmissions(row, ctx.needs_input_grad[0]) for row in rows]
        shares, slopes = (torch.from_numpy(np.stack(each)).to(densities) for each in zip(*found, strict=True))
        # gradients are computed here, where the factors are: they are most of the work, and too large to keep
        ctx.save_for_backward(slopes.reshape(*lead, *slopes.shape[1:]))
        return shares.reshape(*lead, -1)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (slopes,) = ctx.saved_tensors
        return (gradient[..., None, None] * slopes).sum(-3), None


def transmission(densities: Tensor, device: Device) -> Tensor:
    """Shares of the power `[..., channels]` that designs `[..., pixels, pixels]` of densities in [0, 1] let through."""
    return _Transmission.apply(densities, device)  # pyright: ignore[reportReturnType]
