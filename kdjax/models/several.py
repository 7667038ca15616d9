"""Several networks as one, whose maps have the name of their network before theirs."""

from collections.abc import Mapping

import jax.numpy as jnp
from jaxtyping import PRNGKeyArray

from kdjax.models.network import Applied, Images, Key, Network, Variables, maps_of
from kdjax.models.outputs import Preprocessing
from kdjax.utils.errors import UserError
from kdjax.utils.imports import SEPARATOR


def split_paths(path: str) -> dict[str, str]:
    """Returns the paths in a path with commas, by the last part of each.

    Raises:
      UserError: if there are several, and two have the same last part, or one has none.
    """
    paths = path.split(",")
    ends = [one.rpartition(SEPARATOR)[2].rstrip("/").rpartition("/")[2] for one in paths]
    if len(paths) > 1 and ("" in ends or len(set(ends)) < len(ends)):
        raise UserError(
            f"{path} names several networks: their last parts must differ, and none may be empty, "
            "because they are the names of the networks"
        )
    return dict(zip(ends, paths, strict=True))


class SeveralNetworks:
    """A network that returns the maps of several trained ones, as "dinov2_s/stage4".

    Its input is pixels, because each network normalizes them in its own way.

    Args:
      networks: by name, a network, its variables, and how pixels become its input.
    """

    preprocessing = Preprocessing(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))

    def __init__(self, networks: Mapping[str, tuple[Network, Variables, Preprocessing]]):
        self._networks = dict(networks)

    def init(self, key: PRNGKeyArray, images: Images) -> Variables:
        """Returns the trained variables."""
        del key, images
        variables = {name: own for name, (_, own, _) in self._networks.items()}
        return {"params": {}, "state": variables}

    def apply(self, variables: Variables, images: Images, *, train: bool, key: Key) -> Applied:
        """Returns the maps of all networks, and the variables."""
        del train, key
        maps = {}
        for name, (network, _, preprocessing) in self._networks.items():
            own, seen = variables["state"][name], preprocessing(jnp.asarray(images))
            output, _ = network.apply(own, seen, train=False, key=None)
            maps |= {f"{name}/{key}": value for key, value in maps_of(output).items()}
        return maps, variables
