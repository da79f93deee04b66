"""Other libraries' loaders and training loops for the same work, set up as in their own documentation.

Libraries: albumentations, torchvision, kornia, fastai and timm. Their tiles are in memory, as ours are, and
the strengths of the augmentation are those of the Config. A library without some augmentation does not have
to replace it: the name of its row states the missing part. Each library is imported in the function that
uses it, so this module can be imported without them.
"""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from threadpoolctl import threadpool_limits
from torch import nn
from torch.utils.data import DataLoader, Dataset

from lib.config import Config

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet


class MemoryDataset(Dataset):
    """A dataset of single tiles and labels with a transform, as in most notebooks."""

    def __init__(
        self, tiles: np.ndarray, labels: np.ndarray, transform: Callable[[np.ndarray], Any] | None = None
    ) -> None:
        self.tiles, self.labels, self.transform = tiles, labels, transform

    def __len__(self) -> int:
        return len(self.tiles)

    def __getitem__(self, row: int) -> tuple[Any, np.float32]:
        assert self.transform is not None
        return self.transform(self.tiles[row]), self.labels[row]


def _loader(dataset: Dataset, *, batch_size: int, workers: int, device: torch.device) -> DataLoader:
    """A DataLoader whose workers stay between epochs, so that short epochs do not pay for starting them.

    Each worker uses one thread. torch limits its own threads, but not those of the BLAS library under
    NumPy, which HEStain calls for every tile. With the default of one BLAS thread per core, two workers
    reach 830 tiles/s instead of 2,440 (2 cores, 2026-11-24).
    """
    return DataLoader(
        dataset,
        batch_size=batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=device.type == "cuda",
        worker_init_fn=_one_thread,
    )


def _one_thread(worker: int) -> None:
    threadpool_limits(1)


def albumentations_loader(
    tiles: np.ndarray,
    labels: np.ndarray,
    config: Config,
    *,
    batch_size: int,
    workers: int,
    device: torch.device,
    size: int = 96,
    hed: bool = False,
) -> DataLoader:
    """The loader of most notebooks: albumentations on one tile at a time, in a DataLoader.

    `hed` adds HEStain, the nearest to jitter of haematoxylin, eosin and DAB: two stains with fixed vectors.
    """
    import albumentations as A
    from albumentations.pytorch import ToTensorV2

    strengths = {
        "brightness": config.brightness,
        "contrast": config.contrast,
        "saturation": config.saturation,
    }
    ranges = {name: (1 - strength, 1 + strength) for name, strength in strengths.items()}
    transforms: list[Any] = [A.RandomRotate90(p=1), A.HorizontalFlip(p=0.5), A.VerticalFlip(p=0.5)]
    if hed:
        strength_ranges = {
            "intensity_scale_range": (1 - config.hed_jitter, 1 + config.hed_jitter),
            "intensity_shift_range": (-config.hed_jitter, config.hed_jitter),
        }
        transforms.append(
            A.HEStain(method="preset", preset="ruifrok", augment_background=True, p=1, **strength_ranges)
        )
    transforms += [A.ColorJitter(**ranges, hue=(-config.hue, config.hue), p=1)]
    if size != tiles.shape[1]:
        transforms.append(A.Resize(size, size))
    compose = A.Compose([*transforms, A.Normalize(mean=MEAN, std=STD), ToTensorV2()])
    dataset = MemoryDataset(tiles, labels, lambda tile: compose(image=tile)["image"])
    return _loader(dataset, batch_size=batch_size, workers=workers, device=device)


def torchvision_loader(
    tiles: np.ndarray,
    labels: np.ndarray,
    config: Config,
    *,
    batch_size: int,
    workers: int,
    device: torch.device,
) -> DataLoader:
    """The v2 transforms of torchvision on one tile at a time, in a DataLoader."""
    transform = _torchvision_transform(config)
    dataset = MemoryDataset(tiles, labels, lambda tile: transform(torch.from_numpy(tile).permute(2, 0, 1)))
    return _loader(dataset, batch_size=batch_size, workers=workers, device=device)


def _torchvision_transform(config: Config) -> nn.Module:
    from torchvision.transforms import v2

    turns = [v2.Lambda(lambda images, turn=turn: images.rot90(turn, (-2, -1))) for turn in range(4)]
    return v2.Compose(
        [
            v2.RandomChoice(turns),
            v2.RandomHorizontalFlip(),
            v2.RandomVerticalFlip(),
            v2.ColorJitter(config.brightness, config.contrast, config.saturation, config.hue),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(MEAN, STD),
        ]
    )


def torchvision_batches(config: Config) -> Callable[[torch.Tensor], torch.Tensor]:
    """The v2 transforms of torchvision on batches (B, 96, 96, 3) uint8: one draw for all tiles of a batch."""
    transform = _torchvision_transform(config)
    return lambda tiles: transform(tiles.permute(0, 3, 1, 2))


def kornia_batches(config: Config) -> Callable[[torch.Tensor], torch.Tensor]:
    """The augmentations of kornia on batches (B, 96, 96, 3) uint8, each tile with its own draw."""
    import kornia.augmentation as K

    sequence = K.AugmentationSequential(
        K.RandomRotation90(times=(0, 3), p=1.0),
        K.RandomHorizontalFlip(p=0.5),
        K.RandomVerticalFlip(p=0.5),
        K.ColorJitter(config.brightness, config.contrast, config.saturation, config.hue, p=1.0),
        K.Normalize(mean=torch.tensor(MEAN), std=torch.tensor(STD)),
        data_keys=["input"],
    )
    return lambda tiles: sequence(tiles.permute(0, 3, 1, 2).float().div_(255))


def _fastai_transforms(config: Config, size: int | None = None) -> list[Any]:
    from fastai.vision.all import Hue, IntToFloatTensor, Normalize, Saturation, aug_transforms

    colours = [Saturation(max_lighting=config.saturation, p=1.0), Hue(max_hue=config.hue, p=1.0)]
    lighting = {"max_lighting": max(config.brightness, config.contrast), "p_lighting": 1.0}
    # flip_vert makes the flip a Dihedral: the eight symmetries. No other rotation, warp or zoom.
    geometry = {"flip_vert": True, "max_rotate": 0.0, "max_zoom": 1.0, "max_warp": 0.0, "size": size}
    augmentations = aug_transforms(**geometry, **lighting, xtra_tfms=colours)
    return [
        IntToFloatTensor(),
        *augmentations,
        Normalize.from_stats(MEAN, STD, cuda=torch.cuda.is_available()),
    ]


def fastai_batches(config: Config) -> Callable[[torch.Tensor], torch.Tensor]:
    """The batch transforms of fastai on (B, 96, 96, 3) uint8, each tile with its own draw."""
    from fastai.vision.all import Pipeline, TensorImage

    pipeline = Pipeline(_fastai_transforms(config), split_idx=0)
    return lambda tiles: pipeline(TensorImage(tiles.permute(0, 3, 1, 2)))


def fastai_loaders(
    tiles: np.ndarray,
    labels: np.ndarray,
    config: Config,
    *,
    batch_size: int,
    workers: int,
    device: torch.device,
    size: int | None = None,
) -> Any:
    """The DataLoaders of fastai: a DataBlock of single tiles, augmented in batches."""
    from fastai.vision.all import DataBlock, ImageBlock, IndexSplitter, RegressionBlock

    block = DataBlock(
        blocks=(ImageBlock, RegressionBlock),
        get_x=lambda row: tiles[row],
        get_y=lambda row: labels[row],
        splitter=IndexSplitter([]),  # no validation set: only training is timed
        batch_tfms=_fastai_transforms(config, size)[1:],  # without IntToFloatTensor, which ImageBlock adds
    )
    # pin_memory and persistent_workers as in _loader
    rest = {"num_workers": workers, "pin_memory": device.type == "cuda", "persistent_workers": workers > 0}
    return block.dataloaders(list(range(len(tiles))), bs=batch_size, device=device, **rest)


def timm_loader(
    tiles: np.ndarray,
    labels: np.ndarray,
    config: Config,
    *,
    batch_size: int,
    workers: int,
    device: torch.device,
    size: int = 96,
) -> Iterable[tuple[torch.Tensor, torch.Tensor]]:
    """The prefetching loader of timm: transforms on Pillow images in workers, normalisation on the device."""
    from PIL import Image
    from timm.data import create_loader

    class PillowDataset(MemoryDataset):
        def __getitem__(self, row: int) -> tuple[Any, int]:
            assert self.transform is not None
            return self.transform(Image.fromarray(self.tiles[row])), int(self.labels[row])

    return create_loader(
        PillowDataset(tiles, labels),
        input_size=(3, size, size),
        batch_size=batch_size,
        is_training=True,
        scale=(1.0, 1.0),
        ratio=(1.0, 1.0),
        hflip=0.5,
        vflip=0.5,
        color_jitter=(config.brightness, config.contrast, config.saturation, config.hue),
        mean=MEAN,
        std=STD,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=device.type == "cuda",
        device=device,
    )


class OneLogit(nn.Module):
    """A backbone with one output, whose logits are a vector."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Compute (B,) logits from (B, 3, H, W)."""
        return self.backbone(images).squeeze(-1)


class Notebook:
    """The training loop of most notebooks: AdamW, autocast, and the loss read at every step."""

    def __init__(
        self, network: nn.Module, loader: Iterable, *, device: torch.device, precision: torch.dtype
    ) -> None:
        self.network, self.loader, self.device, self.precision = network.to(device), loader, device, precision
        self.optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4)
        self.scaler = torch.amp.GradScaler(device.type, enabled=precision == torch.float16)
        self.loss = nn.BCEWithLogitsLoss()

    def train(self, steps: int | None = None) -> int:
        """Train one epoch or `steps` of it; returns the number of tiles."""
        self.network.train()
        trained, running = 0, 0.0
        for number, (images, labels) in enumerate(self.loader, start=1):
            images = images.to(self.device, non_blocking=True)
            labels = torch.as_tensor(labels, dtype=torch.float32).to(self.device, non_blocking=True)
            with torch.autocast(
                self.device.type, dtype=self.precision, enabled=self.precision != torch.float32
            ):
                loss = self.loss(self.network(images), labels)
            self.optimizer.zero_grad()
            self.scaler.scale(loss).backward()
            self.scaler.step(self.optimizer)
            self.scaler.update()
            running += loss.item()
            trained += len(images)
            if number == steps:
                break
        return trained


class Fastai:
    """The training loop of fastai: Learner.fit_one_cycle."""

    def __init__(self, network: nn.Module, loaders: Any, *, precision: torch.dtype) -> None:
        from fastai.vision.all import BCEWithLogitsLossFlat, Learner

        self.learner = Learner(loaders, network, loss_func=BCEWithLogitsLossFlat())
        if precision == torch.float16:
            self.learner.to_fp16()
        if precision == torch.bfloat16:
            self.learner.to_bf16()

    def train(self) -> int:
        """Train one epoch; returns the number of tiles."""
        with self.learner.no_bar(), self.learner.no_logging():
            self.learner.fit_one_cycle(1, 1e-4)
        return len(self.learner.dls.train) * self.learner.dls.train.bs
