"""Stain normalisation of whole batches to one reference, by Macenko or Reinhard.

It is an alternative to stain augmentation: Tellez et al. 2019 (arXiv 1902.06543) found augmentation better.
All of it is computed in float32, in any precision of the network. Nothing waits for a GPU: torch's
decompositions (`eigh`, `pinv`, `inv`) copy an error code to the host, so closed forms take their place.
"""

import numpy as np
import torch

from lib.image.constants import constant

# Macenko et al. 2009 (ISBI): densities of haematoxylin and eosin in red, green and blue, and the 99th
# percentiles of their concentrations, of the usual reference image, which comes from the authors' code.
_REFERENCE_STAINS = ((0.5626, 0.7201, 0.4062), (0.2159, 0.8012, 0.5581))
_REFERENCE_MOST = (1.9705, 1.0308)
_TRANSPARENT = 0.15  # density below which a channel shows glass
_BLACK = 15 / 255  # brightest channel below which a pixel is no tissue, but the edge of a scan
_FEWEST = 0.05  # share of stained pixels below which a tile is not changed
_ANGLES = (0.01, 0.99)
# Reinhard et al. 2001 (IEEE CG&A 21:34): RGB to LMS, then logarithms to l, alpha, beta (Ruderman et al.
# 1998).
_LMS = ((0.3811, 0.5783, 0.0402), (0.1967, 0.7244, 0.0782), (0.0241, 0.1288, 0.8444))
_RUDERMAN = (
    (3**-0.5, 3**-0.5, 3**-0.5),
    (6**-0.5, 6**-0.5, -2 * 6**-0.5),
    (2**-0.5, -(2**-0.5), 0.0),
)
_RGB = tuple(tuple(row) for row in np.linalg.inv(np.array(_LMS)).tolist())
# Medians over 4,320 tiles of the competition's kind.
_REFERENCE_MEAN = (-0.4359, -0.0478, 0.0176)
_REFERENCE_SPREAD = (0.2900, 0.0498, 0.0114)
_DARKEST = 1 / 255


def normalise_stains(images: torch.Tensor, method: str) -> torch.Tensor:
    """Normalise each tile to the reference by the statistics of its own tissue.

    Glass and black pixels are not tissue: they decide nothing and stay as they are.

    Args:
        images: (B, 3, H, W) float32 in [0, 1], RGB.
        method: none, macenko or reinhard.

    Returns:
        (B, 3, H, W) float32 in [0, 1]. A tile with almost no stained pixels is unchanged.
    """
    if method == "none":
        return images
    images = images.float()
    density = -images.flatten(2).clamp(min=_DARKEST).log()  # (B, 3, P)
    glass = (density < _TRANSPARENT).all(dim=1)  # (B, P)
    tissue = ~glass & (images.flatten(2).amax(dim=1) >= _BLACK)  # (B, P)
    if method == "macenko":
        back, usable = _macenko(density, tissue)
    else:
        back, usable = _reinhard(images.flatten(2), tissue)
    usable &= back.isfinite().all(dim=2).all(dim=1)
    changed = (tissue & usable.unsqueeze(1)).view(-1, 1, *images.shape[2:])
    return torch.where(changed, back.view_as(images), images).clamp(0, 1)


def lalphabeta(images: torch.Tensor) -> torch.Tensor:
    """RGB (B, 3, P) in [0, 1] to l, alpha, beta (B, 3, P): decorrelated decimal logarithms of LMS."""
    lms, ruderman = (constant(values, images.device) for values in (_LMS, _RUDERMAN))
    return ruderman @ (lms @ images.clamp(min=_DARKEST)).log10()


def _reinhard(images: torch.Tensor, tissue: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Images (B, 3, P) normalised by Reinhard's method, and which tiles (B,) can be."""
    rgb, ruderman = (constant(values, images.device) for values in (_RGB, _RUDERMAN))
    mean, spread = (
        constant(values, images.device).view(1, 3, 1) for values in (_REFERENCE_MEAN, _REFERENCE_SPREAD)
    )
    values = lalphabeta(images)  # (B, 3, P)
    weight = tissue.unsqueeze(1)  # (B, 1, P)
    count = tissue.sum(dim=1)  # (B,)
    centred = values - (values * weight).sum(dim=2, keepdim=True) / count.clamp(min=1).view(-1, 1, 1)
    squares = (centred.square() * weight).sum(dim=2, keepdim=True)  # (B, 3, 1)
    own = (squares / (count - 1).clamp(min=1).view(-1, 1, 1)).sqrt()  # (B, 3, 1)
    values = centred / own.clamp(min=1e-3) * spread + mean
    back = rgb @ (10 ** (ruderman.T @ values))
    # Tissue of one colour has no spread to scale.
    return back, (count >= _FEWEST * tissue.shape[1]) & (own[:, 0, 0] >= 1e-3)


def _macenko(density: torch.Tensor, tissue: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Images (B, 3, P) of densities (B, 3, P) by Macenko's method, and which tiles (B,) can be normalised."""
    stained = (density > _TRANSPARENT).all(dim=1) & tissue  # (B, P)
    count = stained.sum(dim=1)  # (B,)
    weight = stained / count.clamp(min=1).unsqueeze(1)  # (B, P)
    centred = density - (density * weight.unsqueeze(1)).sum(dim=2, keepdim=True)
    covariance = (centred * weight.unsqueeze(1)) @ centred.transpose(1, 2)  # (B, 3, 3)
    plane = _principal_plane(covariance)  # (B, 3, 2)
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
    amounts = _least_squares(stains) @ density  # (B, 2, P)
    # Of tissue only: a tile that is mostly glass has tiny concentrations, and would be divided by them.
    number = tissue.sum(dim=1)
    quantiles = [_quantile(amounts[:, stain], tissue, number, 0.99) for stain in range(2)]
    most = torch.stack(quantiles, dim=1)  # (B, 2)
    reference = constant(_REFERENCE_STAINS, density.device)
    scale = constant(_REFERENCE_MOST, density.device) / most.clamp(min=1e-3)
    back = (-(reference.T @ (amounts * scale.unsqueeze(2)))).exp()  # (B, 3, P)
    return back, (count >= _FEWEST * density.shape[2]) & (most > 1e-3).all(dim=1)


def _principal_plane(covariance: torch.Tensor) -> torch.Tensor:
    """The eigenvectors of the second largest and of the largest eigenvalue, (B, 3, 2), in this order.

    In closed form (Eberly 2014, "A Robust Eigensolver for 3 x 3 Symmetric Matrices"), computed in float64:
    first the eigenvector of the eigenvalue that is farthest from the other two, then the principal axes of
    the plane normal to it.

    Args:
        covariance: (B, 3, 3), symmetric.
    """
    matrix = covariance.double()
    mean = matrix.diagonal(dim1=1, dim2=2).mean(dim=1)  # (B,)
    identity = torch.eye(3, dtype=matrix.dtype, device=matrix.device)
    centred = matrix - mean.view(-1, 1, 1) * identity
    spread = (centred.square().sum(dim=(1, 2)) / 6).sqrt()  # (B,); 0 where all eigenvalues are equal
    scaled = centred / spread.clamp(min=1e-300).view(-1, 1, 1)
    rows = scaled.unbind(dim=1)  # three of (B, 3)
    determinant = (torch.linalg.cross(rows[0], rows[1]) * rows[2]).sum(dim=1)
    angle = (determinant / 2).clamp(-1, 1).acos() / 3
    largest_apart = determinant >= 0  # (B,); else the smallest is farther from the middle one
    apart = 2 * torch.where(largest_apart, angle, angle + 2 * torch.pi / 3).cos()  # of `scaled`
    rows = (scaled - apart.view(-1, 1, 1) * identity).unbind(dim=1)
    # Each product of two rows is normal to both, which is the eigenvector; the longest is the most accurate.
    products = torch.stack([torch.linalg.cross(rows[i], rows[j]) for i, j in ((0, 1), (0, 2), (1, 2))], dim=1)
    longest = products.square().sum(dim=2).argmax(dim=1).view(-1, 1, 1).expand(-1, 1, 3)
    vector = products.gather(1, longest).squeeze(1)  # (B, 3)
    length = vector.norm(dim=1, keepdim=True)
    vector = torch.where(length > 0, vector / length.clamp(min=1e-300), identity[2])
    # Two axes normal to it (Duff et al. 2017, JCGT 6:1).
    x, y, z = vector.unbind(dim=1)
    sign = torch.where(z < 0, -1.0, 1.0).to(z.dtype)
    a = -1 / (sign + z)
    b = x * y * a
    across = torch.stack([1 + sign * x * x * a, sign * b, -sign * x], dim=1)  # (B, 3)
    along = torch.stack([b, sign + y * y * a, -y], dim=1)
    basis = torch.stack([across, along], dim=2)  # (B, 3, 2)
    inner = basis.transpose(1, 2) @ scaled @ basis  # (B, 2, 2)
    turn = torch.atan2(2 * inner[:, 0, 1], inner[:, 0, 0] - inner[:, 1, 1]).unsqueeze(1) / 2  # (B, 1)
    major = turn.cos() * across + turn.sin() * along
    minor = turn.cos() * along - turn.sin() * across
    apart_first = largest_apart.unsqueeze(1)
    middle = torch.where(apart_first, major, minor)
    largest = torch.where(apart_first, vector, major)
    return torch.stack([middle, largest], dim=2).to(covariance.dtype)


def _least_squares(stains: torch.Tensor) -> torch.Tensor:
    """The pseudo-inverse (B, 2, 3) of two stain vectors (B, 3, 2); not finite where they are parallel."""
    first, second = stains.unbind(dim=2)  # (B, 3) each
    a, b, c = ((u * v).sum(dim=1) for u, v in ((first, first), (first, second), (second, second)))
    inverse = torch.stack([c, -b, -b, a], dim=1).view(-1, 2, 2) / (a * c - b * b).view(-1, 1, 1)
    return inverse @ stains.transpose(1, 2)


def _quantile(values: torch.Tensor, among: torch.Tensor, count: torch.Tensor, share: float) -> torch.Tensor:
    """The quantile (B,) of the `count` (B,) values (B, P) that are marked, without waiting for the device."""
    ordered = torch.where(among, values, torch.inf).sort(dim=1).values
    index = (share * (count - 1).clamp(min=0)).round().long().unsqueeze(1)  # (B, 1)
    quantile = ordered.gather(1, index).squeeze(1)
    return torch.where(quantile.isfinite(), quantile, torch.zeros_like(quantile))
