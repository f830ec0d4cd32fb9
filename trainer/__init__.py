"""Training of the captioner: shards to model."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from im2sp.trainer.generation import generate
    from im2sp.trainer.model import Im2SpModel
    from im2sp.trainer.weights import load_model

__all__ = ["Im2SpModel", "generate", "load_model"]

_HOMES = {"Im2SpModel": "model", "generate": "generation", "load_model": "weights"}


def __getattr__(name: str) -> Any:
    """Import the public names on first use, so that importing this package does not load torch."""
    if name in _HOMES:
        from importlib import import_module

        return getattr(import_module(f"im2sp.trainer.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
