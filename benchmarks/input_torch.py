"""The reference of `benchmarks.input`: the same augmentations in a PyTorch DataLoader, by OpenCV.

Written from the description of mmsegmentation's usual pipeline: read, scale the whole image by a
random factor, crop with at most 75 % of one class in ten tries, flip, distort the colours, pad.
"""

import pathlib

import cv2  # pyright: ignore[reportMissingImports]
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

PADDING = (116, 104, 124)


class Examples(Dataset):
    """Endlessly many augmented crops of the files, as BGR."""

    def __init__(
        self,
        paths: list[tuple[pathlib.Path, pathlib.Path]],
        crop_size: tuple[int, int],
        length: int,
    ):
        self.paths, self.crop_size, self.length = paths, crop_size, length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        rng = np.random.default_rng(index)
        image_path, label_path = self.paths[index % len(self.paths)]
        image = cv2.imread(str(image_path), cv2.IMREAD_COLOR)
        label = cv2.imread(str(label_path), cv2.IMREAD_GRAYSCALE)
        assert image is not None
        assert label is not None
        image, label = crop(*scale(image, label, rng), self.crop_size, rng)
        if rng.random() < 0.5:
            image, label = image[:, ::-1], label[:, ::-1]
        image, label = pad(distort(image, rng), label, self.crop_size)
        return torch.from_numpy(image), torch.from_numpy(label)


def scale(image, label, rng):
    factor = rng.uniform(0.5, 2.0)
    size = (round(image.shape[1] * factor), round(image.shape[0] * factor))
    label = cv2.resize(label, size, interpolation=cv2.INTER_NEAREST)
    return cv2.resize(image, size, interpolation=cv2.INTER_LINEAR), label


def crop(image, label, crop_size, rng):
    window = (slice(None), slice(None))
    for _ in range(11):
        room = [max(size - wanted, 0) for size, wanted in zip(label.shape, crop_size, strict=True)]
        corner = [int(rng.integers(0, most + 1)) for most in room]
        window = tuple(slice(c, c + size) for c, size in zip(corner, crop_size, strict=True))
        classes, counts = np.unique(label[window], return_counts=True)
        counts = counts[classes != 255]
        if len(counts) > 1 and counts.max() < 0.75 * counts.sum():
            break
    return image[window], label[window]


def distort(image, rng):
    def contrast(image):
        return cv2.convertScaleAbs(image, alpha=rng.uniform(0.5, 1.5))

    coins = rng.random(5) < 0.5
    image = np.ascontiguousarray(image)
    if coins[0]:
        delta = rng.uniform(-32, 32)
        image = np.clip(image.astype(np.float32) + delta, 0, 255).astype(np.uint8)
    if coins[1] and coins[4]:
        image = contrast(image)
    if coins[2] or coins[3]:
        hue, saturation, value = cv2.split(cv2.cvtColor(image, cv2.COLOR_BGR2HSV))
        if coins[2]:
            saturation = cv2.convertScaleAbs(saturation, alpha=rng.uniform(0.5, 1.5))
        if coins[3]:
            hue = ((hue.astype(int) + rng.integers(-18, 19)) % 180).astype(np.uint8)
        image = cv2.cvtColor(cv2.merge([hue, saturation, value]), cv2.COLOR_HSV2BGR)
    return contrast(image) if coins[1] and not coins[4] else image


def pad(image, label, crop_size):
    below, right = crop_size[0] - label.shape[0], crop_size[1] - label.shape[1]
    frame = (0, below, 0, right, cv2.BORDER_CONSTANT)
    image = cv2.copyMakeBorder(np.ascontiguousarray(image), *frame, value=PADDING)
    label = cv2.copyMakeBorder(np.ascontiguousarray(label), *frame, value=255)
    return image, label


def no_threads(worker: int) -> None:
    """One worker is one thread."""
    cv2.setNumThreads(0)
    torch.set_num_threads(1)


def loader(paths, crop_size, batch_size: int, workers: int) -> DataLoader:
    return DataLoader(
        Examples(paths, crop_size, 10**9),
        batch_size=batch_size,
        num_workers=workers,
        worker_init_fn=no_threads,
        persistent_workers=True,
        multiprocessing_context="forkserver",
    )
