"""What the tests of two-view methods share: noise as views, and a comparison with a slow reference."""

from collections.abc import Callable

import numpy as np
import torch

from methods.base import Method, Views
from tests.references.embeddings import Weights, gradients

Reference = Callable[[list[np.ndarray], Weights], float]


def noise_views(num_views: int, samples: int = 5, channels: int = 4, dims: int = 2, seed: int = 0) -> Views:
    """Return noise as two views and small crops."""
    generator = torch.Generator().manual_seed(seed)
    sizes = [(2,) * dims if number < 2 else (1,) * dims for number in range(num_views)]
    images = tuple(torch.randn(samples, channels, *size, generator=generator, dtype=torch.float64) for size in sizes)
    return Views(images, rows=torch.arange(samples))


def shake(method: Method, seed: int = 1) -> Method:
    """Return the method in float64, with noise added to all weights, so that no bias is 0 and no scale 1."""
    method = method.double()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in method.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return method


def weights_of(method: Method) -> Weights:
    """Return all parameters by name; batch norms without them under a name that ends in "plain"."""
    weights = {name: parameter.detach().numpy() for name, parameter in method.named_parameters()}
    for name, module in method.named_modules():
        if isinstance(module, torch.nn.BatchNorm1d) and not module.affine:
            weights[f"{name}.plain"] = np.zeros(1)
    return weights


def assert_equal_to_reference(method: Method, views: Views, reference: Reference) -> None:
    """Assert that loss and gradients, by weights and images, are the reference's."""
    images = tuple(image.clone().requires_grad_() for image in views.images)
    losses = method.loss(Views(images, views.boxes, views.targets, views.rows))
    losses.total.backward()
    arrays = [image.detach().numpy() for image in images]
    weights = weights_of(method)
    assert abs(losses.total.item() - reference(arrays, weights)) < 1e-9
    trained = [name for name, parameter in method.named_parameters() if parameter.requires_grad]
    expected = gradients(reference, arrays, weights, trained)
    ours = {name: method.get_parameter(name).grad for name in trained}
    ours |= {f"image {number}": image.grad for number, image in enumerate(images)}
    for name, gradient in ours.items():
        found = np.zeros_like(expected[name]) if gradient is None else gradient.numpy()
        np.testing.assert_allclose(found, expected[name], rtol=1e-6, atol=1e-6, err_msg=name)
    assert max(np.abs(expected[name]).max() for name in trained) > 1e-2, "a zero gradient would prove nothing"
