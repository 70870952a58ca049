"""What the map-style transforms share: batches, the types of their columns, and a fingerprint of what they compute.

`Dataset.map` finds a cached result by a hash of the transform. A hash of the model's pickle changes once the model has
run, takes as much memory as the model, and does not show why a result differs. Here the hash covers what decides the
result: weights, settings, seed and version of the library.
"""

from __future__ import annotations

import functools
import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, TypeGuard, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from spes_hf import __version__
from spes_hf.adapters import Adapter
from spes_hf.audio.stored import entries
from spes_hf.methods import ExplainConfig
from spes_hf.plain import to_plain
from spes_hf.runtime.identity import model_identity, processor_identity
from spes_hf.runtime.locks import model_to_itself
from spes_hf.runtime.workers import is_datasets_worker, share_cores

if TYPE_CHECKING:
    from datasets import Dataset, Features

TransformT = TypeVar("TransformT", bound="RowTransform")


class RowTransform(ABC):
    """A callable for ``Dataset.map``, batched or not, that adds columns to rows.

    It can be pickled. `datasets` hashes it by its `identity`, so a repeated job comes from the cache, and one with
    another seed or setting does not. A subclass outside the package is hashed by its pickle, the default of `datasets`,
    because its code may change under the same name.

    Attributes:
        key: The column that shows that a row has been through the transform.
        reads: The columns that it reads.
        immaterial: Names of attributes that do not change the result.

    Examples:
        >>> issubclass(Explain, RowTransform), Explain.key
        (True, 'explanation')
    """

    key: ClassVar[str]
    immaterial: ClassVar[tuple[str, ...]] = ("batch_size", "found_sizes", "progress", "ranks")

    def __new__(cls, *arguments: Any, **keywords: Any) -> Any:
        """Return a new transform, of a class whose instances `datasets` can hash."""
        if cls.__module__.split(".")[0] == "spes_hf":
            _hash_by_identity(cls)
        return super().__new__(cls)

    def __init_subclass__(cls, **keywords: Any) -> None:
        """Make every transform limit its threads in a worker process before it does anything there."""
        super().__init_subclass__(**keywords)
        if "__call__" in vars(cls):
            cls.__call__ = _sharing_cores(cls.__call__)  # type: ignore[method-assign]

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore the transform, for example in a worker process."""
        share_cores()
        self.__dict__.update(state)

    @abstractmethod
    def __call__(self, row: Any) -> dict[str, Any]:
        """Return the row with the columns that this transform adds."""

    def prepare(self, row: dict[str, Any]) -> dict[str, Any]:
        """Return the row with whatever the transform can prepare without the model; by default unchanged.

        A job does this in another thread while the model runs for the previous row. Errors are left for the call to
        raise.
        """
        return row

    @property
    def running_model(self) -> Any:
        """The model that the transform runs; None if it runs none."""
        return None

    def to(self: TransformT, device: str | torch.device) -> TransformT:
        """Move the model to a device, once, and return the transform."""
        if self.running_model is not None and self.running_model.device != torch.device(device):
            with model_to_itself(self.running_model):
                self.running_model.to(device)
        return self

    def take_place(self, rank: int | None) -> None:
        """Move the model of a worker of ``Dataset.map(…, with_rank=True, num_proc=…)`` to the accelerator of its rank.

        The model stays where it is without a rank (a single worker gets none), without an accelerator, and in the main
        process, where it is the user's.
        """
        device = device_of(rank) if rank is not None and is_datasets_worker() else None
        if device is not None:
            self.to(device)

    @property
    def reads(self) -> tuple[str, ...]:
        """The columns that the transform reads."""
        return ("explanation", "error")

    @abstractmethod
    def columns(self) -> dict[str, Any]:
        """Return the columns that the transform adds, as `datasets` feature types."""

    def features(self, features: Features | None = None) -> Features:
        """Return the features of a dataset after this transform, for ``Dataset.map(…, features=…)``.

        `datasets` infers types from the first rows that it writes. Pass these if the first thousand rows may all fail.

        Args:
            features: Features of the dataset before the transform.
        """
        from datasets import Features

        return Features({**(features or {}), **self.columns()})

    def identity(self) -> dict[str, Any]:
        """Return what decides the result, ready for JSON: class, weights, settings, seed, version of the library."""
        kind = type(self)
        return {
            "transform": f"{kind.__module__}.{kind.__qualname__}",
            "spes_hf": __version__,
            **_attributes(self, self.immaterial),
        }

    def fingerprint(self, dataset: Dataset | None = None) -> str:
        """Return the hash of the transform, combined with a dataset's if given: ``map(…, new_fingerprint=…)``."""
        before = "" if dataset is None else dataset._fingerprint
        return hashlib.blake2b((before + canonical(self.identity())).encode(), digest_size=8).hexdigest()

    def of_batch(self, batch: Mapping[str, Any]) -> dict[str, list[Any]]:
        """Return a batch of columns, including those that this transform adds."""
        lazy = is_lazy(batch)
        names = [name for name in (self.reads if lazy else batch) if name in batch]
        values = {name: raw(batch, name) for name in names}
        rows = [dict(zip(names, row, strict=True)) for row in zip(*values.values(), strict=True)]
        done = [self(row) for row in rows]
        added = tuple(self.columns())
        return {name: [row[name] for row in done] for name in (added if lazy else dict.fromkeys([*names, *added]))}


def device_of(rank: int) -> torch.device | None:
    """Return the accelerator of the worker of that rank, in turn if there are more workers; None if there is none."""
    if not torch.accelerator.is_available():
        return None
    kind = torch.accelerator.current_accelerator()
    return None if kind is None else torch.device(kind.type, rank % torch.accelerator.device_count())


def _sharing_cores(call: Callable[..., Any]) -> Callable[..., Any]:
    """Return a method that calls `share_cores` first."""

    @functools.wraps(call)
    def sharing(self: Any, *arguments: Any, **keywords: Any) -> Any:
        share_cores()
        return call(self, *arguments, **keywords)

    return sharing


def is_batch(row: Any, column: str) -> TypeGuard[Mapping[str, Any]]:
    """Return whether a "row" is a batch of columns; a column whose single values are never lists shows it."""
    if not isinstance(row, Mapping):
        return False
    if is_lazy(row):
        return is_lazy_batch(row)
    return isinstance(row.get(column), (list, tuple, np.ndarray))


def is_lazy(row: Any) -> bool:
    """Return whether ``Dataset.map`` itself merges the dataset's other columns into this row or batch."""
    return hasattr(row, "pa_table") and hasattr(row, "keys_to_format")


def is_lazy_batch(row: Any) -> bool:
    """Return whether `is_lazy` holds, and this is a batch rather than a row."""
    return is_lazy(row) and type(row).__name__ != "LazyRow"


def raw(row: Mapping[str, Any], column: str) -> Any:
    """Return an entry of a row, or a column of a batch, as it is stored: audio is not decoded.

    Audio comes with what its feature asks for, such as another rate.
    """
    if not is_lazy(row):
        return row.get(column)
    if column not in row.keys_to_format:  # type: ignore[attr-defined]
        return row.get(column)
    features = row.formatter.features or {}  # type: ignore[attr-defined]
    values = entries(row.pa_table[column], features.get(column))  # type: ignore[attr-defined]
    return values if is_lazy_batch(row) else values[0]


def canonical(identity: Any) -> str:
    """Return an identity as JSON; equal identities give equal text."""
    return json.dumps(identity, sort_keys=True, ensure_ascii=True)


def _attributes(value: Any, immaterial: tuple[str, ...]) -> dict[str, Any]:
    return {name: _identity(entry, immaterial) for name, entry in vars(value).items() if name not in immaterial}


def _identity(value: Any, immaterial: tuple[str, ...]) -> Any:
    """Return what identifies a value, as values for JSON."""
    if isinstance(value, (str, int, float, bool, type(None))):
        return value
    if isinstance(value, Adapter):
        settings = {"settings": _identity(dict(value.settings), immaterial)} if value.settings else {}
        return {"model": model_identity(value.model), "processor": processor_identity(value.processor), **settings}
    if isinstance(value, ExplainConfig):
        return value.to_dict()
    if isinstance(value, nn.Module) and hasattr(value, "config"):  # an assistant model
        return model_identity(value)
    if isinstance(value, (Tensor, np.ndarray, np.generic)):
        return to_plain(value)
    if isinstance(value, Mapping):
        return {str(name): _identity(entry, immaterial) for name, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_identity(entry, immaterial) for entry in value]
    if type(value).__module__.split(".")[0] == "spes_hf" and hasattr(value, "__dict__"):
        return _attributes(value, immaterial)
    from datasets.fingerprint import Hasher

    return Hasher.hash(value)


def _hash_by_identity(cls: type) -> None:
    """Make `datasets` hash the instances of a class by their identity; does nothing if it offers no way to."""
    try:
        from datasets.utils._dill import Pickler, pklregister
    except ImportError:
        return
    if cls in Pickler.dispatch:
        return

    @pklregister(cls)
    def save(pickler: Any, transform: RowTransform) -> None:
        pickler.save_reduce(str, (canonical(transform.identity()),), obj=transform)
