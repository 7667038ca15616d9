"""Extension of Griffe, which reads the API reference from the source.

`kdjax.losses.cwd` is a function, and also the name of the module that defines it. Python finds the
function. Griffe takes the module unless this extension replaces it.
"""

from typing import Any

import griffe


class FunctionsBeforeModules(griffe.Extension):
    """Replaces each module of `kdjax.losses` that is named after its function by the function."""

    def on_package(self, *, pkg: griffe.Module, **kwargs: Any) -> None:
        """Receives a package whose modules are all loaded."""
        losses = pkg["losses"]
        for name, module in list(losses.modules.items()):
            if name in module.functions:
                function = griffe.Alias(name, module.functions[name], parent=losses)
                losses.set_member(name, function)
