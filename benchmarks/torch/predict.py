"""Labels the photos of a folder in PyTorch, as `kdjax predict` does.

    python -m benchmarks.torch.predict WEIGHTS PHOTOS OUTPUT THREADS

WEIGHTS is a dictionary by `torch.save`: "size" ("lite0" or "lite2"), "palette" of all 256 values,
and the "state" of a `LightFPN`. Each photo is labeled whole, one at a time. Threads read the next
photos and write `labels/*.png` and `overlays/*.png`.
"""

import collections
import pathlib
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from PIL import Image

from benchmarks.torch.lite import LightFPN
from benchmarks.torch.networks import resize
from benchmarks.torch.trainer import channels_last, normalize

THREADS, AHEAD = 4, 2  # as kdjax's
OPACITY = 0.5


def main() -> None:
    weights, photos, output, threads = sys.argv[1:]
    torch.set_num_threads(int(threads))
    content = torch.load(weights, weights_only=True)
    classes = len(content["state"]["decode_head.conv_seg.bias"])
    network = channels_last(LightFPN(content["size"], classes))
    network.load_state_dict(content["state"])
    palette = np.array(content["palette"], np.uint8)
    folder = pathlib.Path(output)
    for kind in ("labels", "overlays"):
        (folder / kind).mkdir(parents=True)

    def write(name: str, image: np.ndarray, label: np.ndarray) -> None:
        picture = Image.fromarray(label)
        picture.putpalette(palette.tobytes())
        picture.save(folder / "labels" / name)
        colors = Image.fromarray(palette[label])
        Image.blend(Image.fromarray(image), colors, OPACITY).save(folder / "overlays" / name)

    paths = sorted(pathlib.Path(photos).iterdir())
    waiting, writing = collections.deque(), []
    with ThreadPoolExecutor(THREADS) as pool:
        for index, path in enumerate(paths):
            while len(waiting) <= AHEAD and index + len(waiting) < len(paths):
                waiting.append(pool.submit(read, paths[index + len(waiting)]))
            image = waiting.popleft().result()
            label = labeled(network, image)
            writing.append(pool.submit(write, f"{path.stem}.png", image, label))
        for written in writing:
            written.result()


def read(path: pathlib.Path) -> np.ndarray:
    """Returns the pixels of a photo, [H, W, 3] uint8."""
    with Image.open(path) as image:
        return np.array(image.convert("RGB"))


def labeled(network: LightFPN, image: np.ndarray) -> np.ndarray:
    """Returns the class of each pixel of an image [H, W, 3], uint8."""
    with torch.inference_mode():
        scores = network(normalize(torch.from_numpy(image[None]), torch.float32))["logits"]
        return resize(scores, image.shape[:2]).argmax(1)[0].numpy().astype(np.uint8)


if __name__ == "__main__":
    main()
