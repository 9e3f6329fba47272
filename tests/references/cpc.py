"""CPC's contexts and losses, slowly, in plain loops and numpy float64; one function per version.

Patches are kept in a dictionary by their place in the grid. Gradients are central differences.
"""

import itertools
import math

import numpy as np

from tests.references.differences import differentiate

Weights = dict[str, np.ndarray]
Cell = tuple[int, ...]
Codes = dict[Cell, np.ndarray]


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def mirrored(position: int, length: int) -> int:
    """Walk to a position from 0, turning round at either end."""
    at, direction = 0, 1 if position > 0 else -1
    for _ in range(abs(position)):
        if length > 1 and not 0 <= at + direction < length:
            direction = -direction
        at += direction if length > 1 else 0
    return at


def context(column: Cell, grid: Cell) -> list[Cell]:
    """Return the own patch of a column, last, after all rows above it, each one wider than the one below."""
    own = grid[0] // 2 - 1
    cells = []
    for row in range(own + 1):
        reach = own - row
        for offset in itertools.product(range(-reach, reach + 1), repeat=len(column)):
            place = [mirrored(c + o, length) for c, o, length in zip(column, offset, grid[1:], strict=True)]
            cells.append((row, *place))
    return cells


def gru(tokens: list[np.ndarray], w: Weights) -> np.ndarray:
    """Return the last state of a GRU, as torch defines it."""
    state = np.zeros(w["context.weight_hh_l0"].shape[1])
    for token in tokens:
        reset_i, update_i, new_i = np.split(w["context.weight_ih_l0"] @ token + w["context.bias_ih_l0"], 3)
        reset_h, update_h, new_h = np.split(w["context.weight_hh_l0"] @ state + w["context.bias_hh_l0"], 3)
        update = sigmoid(update_i + update_h)
        new = np.tanh(new_i + sigmoid(reset_i + reset_h) * new_h)
        state = (1 - update) * new + update * state
    return state


def encode(images: np.ndarray, grid: Cell, w: Weights) -> Codes:
    """Return the codes of one sample's patches (K, f)."""
    places = itertools.product(*(range(length) for length in grid))
    return {
        place: w["projector.weight"] @ patch + w["projector.bias"]
        for place, patch in zip(places, images, strict=True)
    }


def predictions(codes: Codes, column: Cell, grid: Cell, first: int, w: Weights) -> dict[int, np.ndarray]:
    """Return what is predicted for every row from ``first`` on."""
    seen = gru([codes[cell] for cell in context(column, grid)], w)
    return {
        row: w[f"predictors.{row - first}.weight"] @ seen + w[f"predictors.{row - first}.bias"]
        for row in range(first, grid[0])
    }


def paper(images: np.ndarray, grid: Cell, negatives: np.ndarray, w: Weights) -> float:
    """Return eq. 1, averaged: the rows after the next one, each against all patches of the sample."""
    terms = []
    for sample in range(images.shape[1]):
        codes = encode(images[:, sample], grid, w)
        for column in itertools.product(*(range(length) for length in grid[1:])):
            for row, guess in predictions(codes, column, grid, grid[0] // 2 + 1, w).items():
                scores = {cell: float(guess @ code) for cell, code in codes.items()}
                total = sum(math.exp(score) for score in scores.values())
                terms.append(math.log(total) - scores[(row, *column)])
    return sum(terms) / len(terms)


def released(images: np.ndarray, grid: Cell, negatives: np.ndarray, w: Weights) -> float:
    """Return the released loss: a column and another one, each scored by the mean over rows of mean products."""
    columns = list(itertools.product(*(range(length) for length in grid[1:])))
    terms = []
    for sample in range(images.shape[1]):
        codes = encode(images[:, sample], grid, w)
        for number, column in enumerate(columns):
            guesses = predictions(codes, column, grid, grid[0] // 2, w)
            for other, label in ((column, 1), (columns[negatives[sample, number]], 0)):
                products = [np.mean(guess * codes[(row, *other)]) for row, guess in guesses.items()]
                chance = 1 / (1 + math.exp(-sum(products) / len(products)))
                terms.append(-math.log(chance if label else 1 - chance))
    return sum(terms) / len(terms)


LOSSES = {"paper": paper, "released": released}


def gradients(
    version: str, images: np.ndarray, grid: Cell, negatives: np.ndarray, w: Weights, step: float = 1e-6
) -> Weights:
    """Differentiate a version's loss by every weight and by the images (K, samples, f)."""
    loss = LOSSES[version]
    found = {
        name: differentiate(lambda x, name=name: loss(images, grid, negatives, {**w, name: x}), value, step)
        for name, value in w.items()
    }
    return {**found, "images": differentiate(lambda x: loss(x, grid, negatives, w), images, step)}
