"""A finer feature map: the first layers of a convolutional network without their max-pool, or without their stride, too."""

from typing import cast

from torch import nn


class StemError(ValueError):
    """This backbone's first layers have nothing to leave out; the message says what."""


def refine_stem(backbone: nn.Module, stem: str) -> None:
    """Change the first layers of a backbone in place; no weight changes its shape.

    Args:
        backbone: a timm network.
        stem: keep, no_pool or no_stride, as in Config.

    Raises:
        StemError: there is no max-pool, or no convolution with a stride that is smaller than its kernel.
    """
    if stem == "keep":
        return
    pools = [name for name, module in backbone.named_modules() if isinstance(module, nn.MaxPool2d)]
    if pools:
        *path, last = pools[0].split(".")
        owner = backbone.get_submodule(".".join(path))
        # DenseNet and others run their modules in a row, ResNet by name: both take an identity.
        setattr(owner, last, nn.Identity())
    if stem == "no_pool":
        if not pools:
            raise StemError("it has no max-pool in its first layers: use stem = keep, or no_stride")
        return
    first = next((module for module in backbone.modules() if isinstance(module, nn.Conv2d)), None)
    stride, kernel = (
        cast(tuple[int, int], getattr(first, name, (1, 1))) for name in ("stride", "kernel_size")
    )
    if stride[0] == 1 or stride[0] >= kernel[0]:
        raise StemError(
            f"its first convolution ({kernel[0]} wide, stride {stride[0]}) has no stride to spare: use stem = keep"
        )
    cast(nn.Conv2d, first).stride = (1, 1)
