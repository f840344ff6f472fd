"""What a channel's transforms become: hops and codecs, checked along the chain for type, dtype, parameters, growth.

Pure: a spec and what plugins export in, the record's parts out; a refusal names channel and transform, and where
there is a converter it is proposed.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from fabric import errors, limits
from fabric.config import ChannelSpec
from fabric.config.spec import TransformSettings
from fabric.messages.schema import Schema
from fabric.registry.records import CodecRecord

Export = Mapping[str, Any]
Exports = Mapping[str, Export]
_PLAIN = TransformSettings()


class Chain(NamedTuple):
    """A negotiated chain: transforms that are hops, codecs at the ends, parameters, and the type that is delivered."""

    transforms: tuple[str, ...] = ()
    codecs: tuple[CodecRecord, ...] = ()
    settings: dict[str, dict[str, Any]] = {}
    delivers: str = ""  #: empty: the channel's own type


def negotiate(spec: ChannelSpec, exports: Exports, schema: str = "") -> Chain:
    """Follow a message along a chain.

    Parameters
    ----------
    exports : mapping
        Transform name → its export, with `accepts` and `produces` as ``name@version`` or ``any``, and its `plugin`:
        one process, which has no lane to itself.
    schema : str
        Canonical text of the channel's type, where it is known.

    Raises
    ------
    ConfigError, TypeMismatchError
        A transform is not known, does not accept what arrives, or has not what its entry gives; it is named.
    """
    _check_pattern(spec)
    walk = _Walk(spec, exports, schema)
    for index, name in enumerate(spec.transforms):
        walk.take(index, name)
    delivers = "" if walk.carried == spec.type else walk.carried
    return Chain(tuple(walk.hops), tuple(walk.codecs), walk.settings, delivers)


def _check_pattern(spec: ChannelSpec) -> None:
    if spec.transforms and spec.pattern not in ("stream", "queue"):
        raise errors.ConfigError(
            f"transforms run on stream and queue channels, {spec.name!r} is {spec.pattern}",
            channel=spec.name,
        )


class _Walk:
    def __init__(self, spec: ChannelSpec, exports: Exports, schema: str) -> None:
        self.spec, self.exports = spec, exports
        self.carried, self.schema = spec.type, schema
        self.hops: list[str] = []
        self.codecs: list[CodecRecord] = []
        self.settings: dict[str, dict[str, Any]] = {}
        self.growth = 1.0

    def take(self, index: int, name: str) -> None:
        export = self._export(name)
        settings = self.spec.settings.get(name, _PLAIN)
        self._check_parameters(name, export, settings)
        self._check_growth(name, export)
        if export.get("tensor_codec"):
            self._check_codec(name, export)
            self.codecs.append(codec_record(name, settings, index))
            return
        self._check_type(name, export)
        self._check_neighbour(name, export)
        self.hops.append(name)
        if settings.parameters:
            self.settings[name] = settings.parameters
        if (produces := type_name(export, "produces")) != "any":
            self.carried, self.schema = produces, str(export.get("produces_schema") or "")

    def _export(self, name: str) -> Export:
        export = self.exports.get(name)
        if export is not None:
            return export
        near = difflib.get_close_matches(name, self.exports, 1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise errors.ConfigError(
            f"channel {self.spec.name!r}: there is no transform {name!r}{hint}; name its file under plugins, or"
            " install it",
            channel=self.spec.name,
            transform=name,
        )

    def _check_parameters(self, name: str, export: Export, settings: TransformSettings) -> None:
        known = list(export.get("parameters") or ())
        unknown = [key for key in settings.parameters if key not in known]
        if unknown:
            near = difflib.get_close_matches(unknown[0], known, 1)
            has = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(known) or 'none'}"
            raise errors.ConfigError(
                f"channel {self.spec.name!r}: transform {name!r} has no parameter {unknown[0]!r}; {has}",
                channel=self.spec.name,
                transform=name,
                parameter=unknown[0],
            )
        if not export.get("tensor_codec") and (settings.when, settings.where) != ("pays", "remote"):
            raise errors.ConfigError(
                f"channel {self.spec.name!r}: {name!r} is no codec of tensors, so it has no 'when' or 'where';"
                " remove them",
                channel=self.spec.name,
                transform=name,
            )

    def _check_growth(self, name: str, export: Export) -> None:
        self.growth *= max(1.0, float(export.get("max_expansion", 1.0)))
        if self.growth > limits.CHAIN_EXPANSION_MAX:
            raise errors.ConfigError(
                f"channel {self.spec.name!r}: with transform {name!r} a message may grow {self.growth:g} times,"
                f" CHAIN_EXPANSION_MAX is {limits.CHAIN_EXPANSION_MAX}; lower its max_expansion, or split the chain",
                channel=self.spec.name,
                transform=name,
                limit="CHAIN_EXPANSION_MAX",
            )

    def _check_codec(self, name: str, export: Export) -> None:
        where = {"channel": self.spec.name, "transform": name}
        if export.get("tier", "stage") == "stage":
            raise errors.ConfigError(
                f"channel {self.spec.name!r}: codec {name!r} encodes single tensors, and says tier='stage'; declare"
                " tier='edge' once it passes fabricctl plugin test, and install its package",
                **where,
            )
        if self.codecs:
            raise errors.ConfigError(
                f"channel {self.spec.name!r}: {name!r} follows the codec {self.codecs[0].name!r}; a tensor has one,"
                " so keep one of the two",
                **where,
            )
        mine, theirs = list(export.get("dtypes") or ()), sorted(set(tensor_dtypes(self.schema)))
        if mine and self.schema and not set(mine) & set(theirs):
            shown = "|".join(theirs) or "no tensors"
            raise errors.TypeMismatchError(
                f"channel {self.spec.name!r}: codec {name!r} encodes {'|'.join(mine)}, {self.carried} has {shown}"
                f"{self._cast(theirs, mine, name)}",
                **where,
            )

    def _cast(self, found: Sequence[str], wanted: Sequence[str], before: str) -> str:
        if not found:
            return "; remove it"
        return f"; insert cast: {found[0]} → {wanted[0]} before {before!r}"

    def _check_type(self, name: str, export: Export) -> None:
        accepts = type_name(export, "accepts")
        if accepts in ("any", self.carried):
            return
        raise errors.TypeMismatchError(
            f"transform {name!r} accepts {accepts}, channel {self.spec.name!r} carries {self.carried} there"
            f"{self._proposal(name, export, accepts)}",
            channel=self.spec.name,
            transform=name,
            accepts=accepts,
            carried=self.carried,
        )

    def _proposal(self, name: str, export: Export, accepts: str) -> str:
        """Return how the message could become what is wanted, where something loaded or installed does that."""
        for other, offer in self.exports.items():
            if (type_name(offer, "accepts"), type_name(offer, "produces")) == (
                self.carried,
                accepts,
            ):
                return f"; insert {other!r} before {name!r}: it makes {accepts} of {self.carried}"
        change = dtype_change(self.schema, str(export.get("accepts_schema") or ""))
        return f"; insert cast: {change[0]} → {change[1]} before {name!r}" if change else ""

    def _check_neighbour(self, name: str, export: Export) -> None:
        before = self.exports[self.hops[-1]].get("plugin") if self.hops else None
        if before is not None and before == export.get("plugin"):
            raise errors.ConfigError(
                f"channel {self.spec.name!r}: transforms {self.hops[-1]!r} and {name!r} follow each other and come"
                f" from one plugin, {before!r}; put them in two files, or make one transform of them",
                channel=self.spec.name,
                transform=name,
            )


def codec_record(name: str, settings: TransformSettings, index: int) -> CodecRecord:
    """Return how a channel's record says a codec of a file."""
    return CodecRecord(
        name=name,
        when=settings.when,
        where=settings.where,
        parameters=settings.parameters,
        index=index,
    )


def type_name(export: Export, role: str) -> str:
    """Return the name of the type that a transform accepts or produces, without its version."""
    return str(export.get(role, "any")).partition("@")[0]


def tensor_dtypes(schema: str) -> Iterator[str]:
    """Yield the dtypes that the tensors of a type may have; none where the schema is not known."""
    for field in Schema.parse(schema).fields if schema else ():
        yield from field.dtypes or ()


def dtype_change(carried: str, accepted: str) -> tuple[str, str] | None:
    """Return (found, wanted) where two types differ in nothing but the dtypes of one tensor; else None."""
    if not carried or not accepted:
        return None
    ours, theirs = Schema.parse(carried).fields, Schema.parse(accepted).fields
    if [(f.name, f.dims) for f in ours] != [(f.name, f.dims) for f in theirs]:
        return None
    pairs = zip(ours, theirs, strict=True)
    changed = [(a, b) for a, b in pairs if (a.dtypes or None) != (b.dtypes or None)]
    if len({(tuple(a.dtypes or ()), tuple(b.dtypes or ())) for a, b in changed}) != 1:
        return None
    before, after = changed[0]
    return (before.dtypes[0], after.dtypes[0]) if before.dtypes and after.dtypes else None
