"""nanollm_jax: transformer language-model inference in JAX, minimal and complete.

import nanollm_jax as nano
model = nano.load()
print(nano.generate(model, "Once upon a time").text)

The public names stand in __init__.pyi, once, and are imported when they are first used: `import nanollm_jax` alone does
not wait for jax.
"""

from __future__ import annotations

import importlib
import os
import sys
from types import ModuleType
from typing import Any

__version__ = "0.1.0"

with open(os.path.join(os.path.dirname(__file__), "__init__.pyi"), encoding="utf-8") as stub:
    HOME = {words[3]: words[1] for words in map(str.split, stub) if words and words[0] == "from"}
__all__ = list(HOME)


class Package(ModuleType):
    """This module. Importing the file decode.py would bind its name here, where it is that of the function decode."""

    def __setattr__(self, name: str, value: Any) -> None:
        """Bind a name, unless it is a public one and the value the file of that name; a room may be public itself."""
        if not (HOME.get(name, __name__) != __name__ and isinstance(value, ModuleType)):
            super().__setattr__(name, value)

    def __getattr__(self, name: str) -> Any:
        """A public name, from its room, on its first use."""
        if name not in HOME:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        home = HOME[name]
        value = (
            importlib.import_module(f"{home}.{name}")
            if home == __name__
            else getattr(importlib.import_module(home), name)
        )
        setattr(self, name, value)
        return value

    def __dir__(self) -> list[str]:
        """What there is, imported or not."""
        return sorted({*super().__dir__(), *HOME})


sys.modules[__name__].__class__ = Package
