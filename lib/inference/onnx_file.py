"""ONNX files of members: tiles to a logit, with resizing, normalisation and views inside the file."""

import importlib.util
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from torch import nn

from lib.data.tiff import TILE_SHAPE, TILE_SIZE
from lib.errors import KernelError
from lib.image.dihedral import transform
from lib.model.linear_head import Head
from lib.model.network import Classifier

PACKAGES = ("onnx", "onnxruntime", "onnxscript")
TOLERANCE = 1e-4  # of a logit between onnxruntime and torch, relative where the logit is larger than 1
INPUT, OUTPUT = "tiles", "logit"
_OPSET = 18  # the first with an antialiased resize


class OnnxError(KernelError):
    """A member cannot be exported to ONNX, or the file computes other logits."""


def require_packages() -> None:
    """Check that the packages are installed.

    Raises:
        OnnxError: one is not.
    """
    if absent := [name for name in PACKAGES if importlib.util.find_spec(name) is None]:
        raise OnnxError(
            f"ONNX needs the packages {', '.join(PACKAGES)}; {', '.join(absent)} is not installed. Install "
            "them with "
            "`.venv/bin/python -m pip install -e '.[onnx]'`, or export without --onnx."
        )


class _TileLogit(nn.Module):
    """Tiles (B, 3, 96, 96) float32 in [0, 1] to logits (B,), the mean over the views."""

    weight: torch.Tensor
    bias: torch.Tensor
    mean: torch.Tensor
    spread: torch.Tensor

    def __init__(self, network: Classifier, head: Head | None, *, views: int) -> None:
        super().__init__()
        self.network, self.views = network, views
        self.has_head = head is not None
        if head is not None:
            for name, value in asdict(head).items():
                self.register_buffer(name, torch.as_tensor(value, dtype=torch.float32))

    def forward(self, tiles: torch.Tensor) -> torch.Tensor:
        images = self.network.resize(tiles)
        images = torch.cat([transform(images, view) for view in range(self.views)])  # (V*B, 3, H, W)
        if self.has_head:
            vectors = self.network.embed(images)  # (V*B, C)
            # In the order of Head.logits: the mean over the views, then the standardisation.
            vectors = vectors.view(self.views, -1, vectors.shape[-1]).mean(dim=0)
            return ((vectors - self.mean) / self.spread) @ self.weight + self.bias
        logits: torch.Tensor = self.network(images)
        return logits.view(self.views, -1).mean(dim=0)


def write_onnx(
    path: Path, network: Classifier, head: Head | None, *, views: int, logits: np.ndarray, tiles: np.ndarray
) -> float:
    """Write a member as one ONNX file, and compare it with the member's own logits.

    The file takes `tiles`, (B, 3, 96, 96) float32 in [0, 1], RGB, with any B, and gives `logit`, (B,).

    Args:
        path: of the file.
        network: on the CPU, in evaluation mode; the frozen encoder of a head.
        head: of a frozen encoder, or None.
        views: of a tile, whose logits are averaged.
        logits: (8,) of the member, computed in float32.
        tiles: (8, 96, 96, 3) uint8, for the comparison in batches of 1 and 7.

    Returns:
        The largest difference of a logit, relative where the logit is larger than 1.

    Raises:
        OnnxError: the network normalises stains, torch cannot export it, or the logits differ.
    """
    import onnxruntime

    if network.stain_normalisation != "none":
        raise OnnxError("stain normalisation is not part of ONNX: export without --onnx")
    assert tiles.shape == (8, *TILE_SHAPE)
    module = _TileLogit(network, head, views=views).eval()
    example = torch.zeros(2, 3, TILE_SIZE, TILE_SIZE)
    try:
        with torch.inference_mode(False), torch.no_grad():
            torch.onnx.export(
                module,
                (example,),
                path,
                input_names=[INPUT],
                output_names=[OUTPUT],
                dynamic_shapes={"tiles": {0: torch.export.Dim("batch", min=1, max=4096)}},
                opset_version=_OPSET,
                dynamo=True,
                external_data=False,
                verbose=False,
            )
    except Exception as error:  # torch's exporter raises many kinds
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise OnnxError(
            f"torch cannot export {path.stem} to ONNX: {lines[0]}. Export without --onnx."
        ) from error
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    images = np.ascontiguousarray(tiles.transpose(0, 3, 1, 2), dtype=np.float32) / 255
    parts = [session.run([OUTPUT], {INPUT: images[rows]})[0] for rows in (slice(0, 1), slice(1, 8))]
    differences = np.abs(np.concatenate(parts) - logits) / np.maximum(1, np.abs(logits))
    difference = float(differences.max())
    if not difference <= TOLERANCE:
        path.unlink()
        raise OnnxError(
            f"{path.name}: its logits differ from torch's by {difference:.2g}, at most {TOLERANCE:g} is "
            "allowed"
        )
    return difference
