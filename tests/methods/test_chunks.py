"""Images that pass through a network in chunks: what is held in memory, and what batch norm remembers."""

import pytest
import torch
from torch import Tensor, nn

from methods.parts.chunks import in_chunks


def held_bytes(network: nn.Module, images: Tensor, num_chunks: int) -> tuple[Tensor, int]:
    """Return the outputs, and how many bytes the backward pass holds from the forward pass on."""
    held: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        held[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        return in_chunks(network, network, images, num_chunks), sum(held.values())


def network() -> nn.Sequential:
    torch.manual_seed(0)
    layers = [layer for _ in range(4) for layer in (nn.Conv2d(8, 8, 3, padding=1), nn.Tanh())]
    return nn.Sequential(*layers, nn.Flatten(), nn.AdaptiveAvgPool1d(3)).double()


def test_activations_are_held_one_chunk_at_a_time_and_gradients_are_those_of_one_pass():
    images = torch.randn(12, 8, 10, 10, dtype=torch.float64)
    one, chunked = network(), network()
    expected, whole_bytes = held_bytes(one, images, 1)
    seen: list[int] = []
    chunked[0].register_forward_hook(lambda module, args, output: seen.append(len(args[0])))
    found, chunked_bytes = held_bytes(chunked, images, 4)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    assert chunked_bytes == images.nbytes < whole_bytes / 5
    for output in (found, expected):
        output.square().sum().backward()
    assert seen == [3] * 8, "each chunk forward, and once more for its own backward pass"
    for parameter, same in zip(chunked.parameters(), one.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, same.grad, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("momentum", [0.1, None])
def test_running_statistics_of_batch_norm_count_each_chunk_once(momentum):
    images = torch.randn(6, 8, 4, 4)
    norm, same = nn.BatchNorm2d(8, momentum=momentum), nn.BatchNorm2d(8, momentum=momentum)
    in_chunks(norm, norm, images.requires_grad_(), 3).sum().backward()
    for chunk in images.detach().chunk(3):
        same(chunk)
    for name, value in same.state_dict().items():
        torch.testing.assert_close(norm.state_dict()[name], value)
    assert int(norm.num_batches_tracked) == 3


def test_what_is_judged_passes_whole():
    layers = network().eval()
    seen: list[int] = []
    layers[0].register_forward_hook(lambda module, args, output: seen.append(len(args[0])))
    with torch.no_grad():
        in_chunks(layers, layers, torch.randn(12, 8, 10, 10, dtype=torch.float64), 4)
    assert seen == [12]
