"""Pooling layers: the last feature map of a backbone to one vector, instead of the backbone's own pooling."""

import torch
from torch import nn
from torch.nn import functional

_EPSILON = 1e-6
# Standard deviation of the prior about the centre, in half sides of the tile: the label is about its middle
# third.
_CENTRE = 1 / 3
_HEAD_SPREAD = 0.1  # standard deviation of the first weights of a head, times the root of their number


def feature_map(backbone: nn.Module, features: torch.Tensor) -> torch.Tensor:
    """Convert the output of timm's `forward_features` to (B, C, H, W) for every family of networks.

    Args:
        backbone: a timm network; it tells the position of the channels and the number of prefix tokens.
        features: (B, C, H, W), (B, H, W, C) or, of a vision transformer, (B, prefix + H*W, C) with H = W.

    Raises:
        ValueError: the features are not the map of a square tile.
    """
    if features.ndim == 4:
        return (
            features.permute(0, 3, 1, 2)
            if str(getattr(backbone, "output_fmt", "")).endswith("NHWC")
            else features
        )
    if features.ndim != 3:
        raise ValueError(f"its features have the shape {tuple(features.shape)}, which is not a map")
    tokens = features[:, int(getattr(backbone, "num_prefix_tokens", 0)) :]
    side = round(tokens.shape[1] ** 0.5)
    if side * side != tokens.shape[1]:
        raise ValueError(f"its {tokens.shape[1]} tokens are not a square map")
    return tokens.transpose(1, 2).unflatten(2, (side, side))


def reset_head(head: nn.Module) -> None:
    """Draw the first weights of a head with one logit, from torch's generator, so that its logits are near 0.

    timm draws the classifier of the EfficientNet and MobileNet families uniformly in +-1 for one class: their
    first logits run from -90 to 8. A standard deviation of 0.1 / sqrt(C) gives logits of about 0.1 times the
    root mean square of the C features, for any number of features.

    Args:
        head: a linear layer or a convolution, or a module that contains some; other modules keep theirs.
    """
    for module in head.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            nn.init.trunc_normal_(module.weight, std=_HEAD_SPREAD / module.weight[0].numel() ** 0.5)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def pre_logits(backbone: nn.Module, vectors: torch.Tensor, *, tokens: bool = False) -> torch.Tensor:
    """Apply the layers that a backbone has between its own pooling and its logit.

    ConvNeXt has a layer norm there, MobileNetV3 a convolution, EVA-02 a layer norm. timm's `forward_head`
    gets a map in which every cell, or token, is the vector: however it pools them, it gets the vector.

    Args:
        backbone: a timm network without an attention pooling of its own.
        vectors: (B, C) of a pool.
        tokens: whether the features of the backbone are a sequence of tokens.

    Returns:
        (B, `backbone.head_hidden_size`).
    """
    if tokens:
        count = 1 + int(getattr(backbone, "num_prefix_tokens", 0))
        features = vectors.unsqueeze(1).expand(-1, count, -1)  # (B, prefix + 1, C)
    elif str(getattr(backbone, "output_fmt", "")).endswith("NHWC"):
        features = vectors[:, None, None, :]  # (B, 1, 1, C)
    else:
        features = vectors[:, :, None, None]  # (B, C, 1, 1)
    result: torch.Tensor = backbone.forward_head(features, pre_logits=True)  # type: ignore[operator]
    return result


def check_own_pool(backbone: nn.Module) -> None:
    """Refuse a backbone whose own pooling is learned: a pool of ours would drop its pretrained weights.

    Raises:
        ValueError: it has such a pooling.
    """
    for name in ("attn_pool", "global_pool"):
        own = getattr(backbone, name, None)
        if isinstance(own, nn.Module) and any(True for _ in own.parameters()):
            raise ValueError(f"its own pooling ({name}) has pretrained weights: use pooling = native")


class AveragePool(nn.Module):
    """Mean: (B, C, H, W) to (B, C)."""

    factor = 1  # output channels = factor * C

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """In float32."""
        return features.float().mean(dim=(2, 3))


class AverageMaxPool(nn.Module):
    """Mean and maximum, concatenated: (B, C, H, W) to (B, 2C)."""

    factor = 2

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """In float32."""
        features = features.float()
        return torch.cat([features.mean(dim=(2, 3)), features.amax(dim=(2, 3))], dim=1)


class GeneralisedMeanPool(nn.Module):
    """Generalised mean (GeM): (B, C, H, W) to (B, C), (mean of x^p)^(1/p) with one learnt p, initially 3.

    Radenovic et al. 2018, arXiv 1711.02512. Negative features are clamped to 1e-6. The power is computed in
    float32, because the cube of 41 overflows float16.
    """

    factor = 1

    def __init__(self) -> None:
        super().__init__()
        self.power = nn.Parameter(torch.tensor([3.0]))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """In float32."""
        power = self.power.float()
        return features.float().clamp(min=_EPSILON).pow(power).mean(dim=(2, 3)).pow(1 / power)


class GatedAttentionPool(nn.Module):
    """Gated attention (Ilse et al. 2018, arXiv 1802.04712): (B, C, H, W) to (B, C), a weighted mean.

    The initial scores are zero, plus a Gaussian prior about the centre with a learnt strength, because the
    label is about the centre of the tile.
    """

    factor = 1

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = max(32, channels // 4)
        self.value = nn.Linear(channels, hidden)
        self.gate = nn.Linear(channels, hidden)
        self.score = nn.Linear(hidden, 1, bias=False)
        self.centre = nn.Parameter(torch.tensor([1.0]))
        nn.init.zeros_(self.score.weight)

    def weights(self, features: torch.Tensor) -> torch.Tensor:
        """Attention weights (B, H, W) float32 of features (B, C, H, W); they sum to one."""
        height, width = features.shape[2:]
        cells = features.float().flatten(2).transpose(1, 2)  # (B, H*W, C)
        gated = torch.tanh(self.value(cells)) * torch.sigmoid(self.gate(cells))  # (B, H*W, hidden)
        scores = self.score(gated).squeeze(2)  # (B, H*W)
        down, across = (
            torch.linspace(-1 + 1 / n, 1 - 1 / n, n, device=features.device) for n in (height, width)
        )
        prior = -(down[:, None] ** 2 + across[None, :] ** 2) / (2 * _CENTRE**2)  # (H, W)
        scores = scores + self.centre.float() * prior.flatten()
        return functional.softmax(scores.float(), dim=1).view(-1, height, width)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """In float32."""
        return (features.float() * self.weights(features).unsqueeze(1)).sum(dim=(2, 3))


class PooledBackbone(nn.Module):
    """A timm backbone without its logit, with one of the pools above, dropout and one logit.

    The layers that the backbone has after its own pooling are applied to each vector of the pool.

    Attributes:
        backbone: timm's, with num_classes = 0.
        tokens: whether its features are a sequence of tokens instead of a map.
    """

    def __init__(
        self, backbone: nn.Module, pool: nn.Module, *, channels: int, drop_rate: float, tokens: bool = False
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.tokens = tokens
        self.pool = pool
        self.drop = nn.Dropout(drop_rate)
        self.head = nn.Linear(channels, 1)
        reset_head(self.head)

    @property
    def pretrained_cfg(self) -> dict[str, object]:
        """The `pretrained_cfg` of the backbone."""
        settings: dict[str, object] = getattr(self.backbone, "pretrained_cfg", {})
        return settings

    def pooled(self, images: torch.Tensor) -> torch.Tensor:
        """Images (B, 3, H, W) to pooled features (B, C) float32."""
        return self.pool_features(feature_map(self.backbone, self.backbone.forward_features(images)))  # type: ignore[operator]

    def pool_features(self, features: torch.Tensor) -> torch.Tensor:
        """Feature maps (B, C, H, W) to pooled features (B, C') float32."""
        with torch.autocast(features.device.type, enabled=False):
            parts = self.pool(features).chunk(int(self.pool.factor), dim=1)  # type: ignore[arg-type]
            return torch.cat([pre_logits(self.backbone, part, tokens=self.tokens) for part in parts], dim=1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Images (B, 3, H, W) to logits (B, 1) float32."""
        vectors = self.pooled(images)
        with torch.autocast(vectors.device.type, enabled=False):
            logits: torch.Tensor = self.head(self.drop(vectors))
        return logits


def build_pool(name: str, channels: int) -> nn.Module:
    """Build the pool named by `Config.pooling` for feature maps with `channels` channels."""
    if name == "attention":
        return GatedAttentionPool(channels)
    return {"avg": AveragePool, "avgmax": AverageMaxPool, "gem": GeneralisedMeanPool}[name]()
