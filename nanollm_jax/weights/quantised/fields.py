"""What an object of config.json says of a quantisation, key by key, remembering which were read."""

from __future__ import annotations

from typing import Any

from nanollm_jax.errors import UNQUANTISED, ConfigError, shown

MOST = 1 << 20  # of a number of bits, inputs or outputs


class Fields:
    """A JSON object. Every method raises ConfigError that names file and key."""

    def __init__(self, values: dict[str, Any], where: str) -> None:
        """where: the file and the key of the object, for messages."""
        self.values, self.where = values, where
        self.read = {"quant_method"}

    def get(self, key: str, default: Any = None) -> Any:
        """A value; a null counts as missing."""
        self.read.add(key)
        value = self.values.get(key)
        return default if value is None else value

    def error(self, key: str, expected: str) -> ConfigError:
        """For a key whose value is not understood."""
        found = shown(self.values.get(key, "missing"))
        return ConfigError(f"{self.where}: {key} is {found}; expected {expected}. Otherwise {UNQUANTISED}.")

    def choice(self, key: str, known: tuple[str, ...], default: str) -> str:
        """One of a few words, in small letters."""
        value = self.get(key, default)
        if not isinstance(value, str) or value.lower() not in known:
            raise self.error(key, " or ".join(known))
        return value.lower()

    def count(self, key: str, known: tuple[int, ...] = (), default: int | None = None) -> int:
        """A whole number above 0, one of those that are known."""
        value = self.get(key, default)
        if type(value) is not int or not 0 < value <= MOST or (known and value not in known):
            raise self.error(key, " or ".join(map(str, known)) or "a whole number above 0")
        return value

    def group(self, key: str, default: int | None = None) -> int | None:
        """How many inputs share a scale; None for all of a row, -1 in the file."""
        value = self.get(key, default)
        if value is None or (type(value) is int and value == -1):
            return None
        return self.count(key, default=default)

    def flag(self, key: str, default: bool) -> bool:
        """true or false."""
        value = self.get(key, default)
        if not isinstance(value, bool):
            raise self.error(key, "true or false")
        return value

    def sizes(self, key: str) -> tuple[int, int] | None:
        """Two whole numbers above 0."""
        value = self.get(key)
        if value is None:
            return None
        if (
            not isinstance(value, list)
            or len(value) != 2
            or any(type(x) is not int or not 0 < x <= MOST for x in value)
        ):
            raise self.error(key, "two whole numbers above 0")
        return value[0], value[1]

    def names(self, key: str) -> tuple[str, ...]:
        """A list of texts."""
        value = self.get(key, [])
        if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
            raise self.error(key, "a list of names")
        return tuple(value)

    def object(self, key: str) -> dict[str, Any]:
        """An object, empty where it is missing."""
        value = self.get(key, {})
        if not isinstance(value, dict):
            raise self.error(key, "an object")
        return value

    def finish(self, inert: str) -> None:
        """Raise ConfigError for keys that nobody read and that are not inert: calibration, kernels, activations."""
        unread = {key: value for key, value in self.values.items() if key not in self.read | set(inert.split())}
        if refused := [
            f"{key} = {shown(value)}" for key, value in unread.items() if value not in (None, False, 0, "", [], {})
        ]:
            raise ConfigError(f"{self.where}: not understood: {', '.join(refused[:8])}; {UNQUANTISED}.")
