"""A method: terms by name."""

from kdjax.config import term

mine = {
    "distance": term("my_extension.losses:distance", power=1.5),
    "remembered": term("my_extension.losses:Remembered", weight=0.5),
}
