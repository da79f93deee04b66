"""Stain normalisation of whole batches to one reference, by Macenko or Reinhard.

It is an alternative to stain augmentation: Tellez et al. 2019 (arXiv 1902.06543) found augmentation better.
All of it is computed in float32, in any precision of the network.
"""

import torch

# Macenko et al. 2009 (ISBI): densities of haematoxylin and eosin in red, green and blue, and the 99th
# percentiles of their concentrations, of the usual reference image, which comes from the authors' code.
_REFERENCE_STAINS = ((0.5626, 0.7201, 0.4062), (0.2159, 0.8012, 0.5581))
_REFERENCE_MOST = (1.9705, 1.0308)
_TRANSPARENT = 0.15  # density below which a pixel is glass
_FEWEST = 0.02  # share of stained pixels below which a tile is not changed
_ANGLES = (0.01, 0.99)
# Reinhard et al. 2001 (IEEE CG&A 21:34): RGB to LMS, then logarithms to l, alpha, beta (Ruderman et al.
# 1998).
_LMS = ((0.3811, 0.5783, 0.0402), (0.1967, 0.7244, 0.0782), (0.0241, 0.1288, 0.8444))
_RUDERMAN = (
    (3**-0.5, 3**-0.5, 3**-0.5),
    (6**-0.5, 6**-0.5, -2 * 6**-0.5),
    (2**-0.5, -(2**-0.5), 0.0),
)
# Medians over 4,320 tiles of the competition's kind.
_REFERENCE_MEAN = (-0.4359, -0.0478, 0.0176)
_REFERENCE_SPREAD = (0.2900, 0.0498, 0.0114)
_DARKEST = 1 / 255


def normalise_stains(images: torch.Tensor, method: str) -> torch.Tensor:
    """Normalise each tile to the reference by its own statistics.

    Args:
        images: (B, 3, H, W) float32 in [0, 1], RGB.
        method: none, macenko or reinhard.

    Returns:
        (B, 3, H, W) float32 in [0, 1]. A tile with almost no stained pixels is unchanged.
    """
    if method == "none":
        return images
    return (_macenko if method == "macenko" else _reinhard)(images.float()).clamp(0, 1)


def lalphabeta(images: torch.Tensor) -> torch.Tensor:
    """RGB (B, 3, P) in [0, 1] to l, alpha, beta (B, 3, P): decorrelated decimal logarithms of LMS."""
    lms, ruderman = (torch.tensor(values, device=images.device) for values in (_LMS, _RUDERMAN))
    return ruderman @ (lms @ images.clamp(min=_DARKEST)).log10()


def _reinhard(images: torch.Tensor) -> torch.Tensor:
    lms, ruderman = (torch.tensor(values, device=images.device) for values in (_LMS, _RUDERMAN))
    mean, spread = (
        torch.tensor(values, device=images.device).view(1, 3, 1)
        for values in (_REFERENCE_MEAN, _REFERENCE_SPREAD)
    )
    values = lalphabeta(images.flatten(2))  # (B, 3, P)
    own = values.std(dim=2, keepdim=True)  # (B, 3, 1)
    values = (values - values.mean(dim=2, keepdim=True)) / own.clamp(min=1e-3) * spread + mean
    back = torch.linalg.inv(lms) @ (10 ** (ruderman.T @ values))
    plain = (own[:, :1] < 1e-3).unsqueeze(3)  # a tile of one colour has no spread to scale
    return torch.where(plain, images, back.view_as(images))


def _macenko(images: torch.Tensor) -> torch.Tensor:
    density = -images.flatten(2).clamp(min=_DARKEST).log()  # (B, 3, P)
    stained = (density > _TRANSPARENT).all(dim=1)  # (B, P)
    count = stained.sum(dim=1)  # (B,)
    weight = stained / count.clamp(min=1).unsqueeze(1)  # (B, P)
    centred = density - (density * weight.unsqueeze(1)).sum(dim=2, keepdim=True)
    covariance = (centred * weight.unsqueeze(1)) @ centred.transpose(1, 2)  # (B, 3, 3)
    vectors = torch.linalg.eigh(covariance).eigenvectors  # (B, 3, 3), ascending
    plane = vectors[:, :, 1:]  # (B, 3, 2)
    plane = plane * torch.where(plane.sum(dim=1, keepdim=True) < 0, -1.0, 1.0)
    along = plane.transpose(1, 2) @ density  # (B, 2, P)
    angle = torch.atan2(along[:, 0], along[:, 1])  # (B, P), from the first axis towards the second
    low, high = (_quantile(angle, stained, count, share) for share in _ANGLES)
    # (B, 3, 1) each
    first, second = (plane @ torch.stack([a.sin(), a.cos()], dim=1).unsqueeze(2) for a in (low, high))
    # Haematoxylin absorbs more red than eosin.
    swap = (first[:, 0] < second[:, 0]).unsqueeze(2)
    ordered = [torch.where(swap, second, first), torch.where(swap, first, second)]
    stains = torch.cat(ordered, dim=2)  # (B, 3, 2)
    amounts = torch.linalg.pinv(stains) @ density  # (B, 2, P)
    all_pixels = torch.ones_like(stained)
    pixels = torch.full_like(count, density.shape[2])
    quantiles = [_quantile(amounts[:, stain], all_pixels, pixels, 0.99) for stain in range(2)]
    most = torch.stack(quantiles, dim=1)  # (B, 2)
    reference = torch.tensor(_REFERENCE_STAINS, device=images.device)
    scale = torch.tensor(_REFERENCE_MOST, device=images.device) / most.clamp(min=1e-3)
    back = (-(reference.T @ (amounts * scale.unsqueeze(2)))).exp()  # (B, 3, P)
    usable = (
        (count >= _FEWEST * density.shape[2])
        & back.isfinite().all(dim=2).all(dim=1)
        & (most > 1e-3).all(dim=1)
    )
    return torch.where(usable.view(-1, 1, 1, 1), back.view_as(images), images)


def _quantile(values: torch.Tensor, among: torch.Tensor, count: torch.Tensor, share: float) -> torch.Tensor:
    """The quantile (B,) of the `count` (B,) values (B, P) that are marked, without waiting for the device."""
    ordered = torch.where(among, values, torch.inf).sort(dim=1).values
    index = (share * (count - 1).clamp(min=0)).round().long().unsqueeze(1)  # (B, 1)
    quantile = ordered.gather(1, index).squeeze(1)
    return torch.where(quantile.isfinite(), quantile, torch.zeros_like(quantile))
