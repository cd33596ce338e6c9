"""What a training run tells its manifest, and the same run again from nothing but that manifest."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import models
import wsejax as wse
from wsejax.training.data import Corpus
from wsejax.training.manifest import ManifestError, read_chain
from wsejax.training.provenance import as_json, origin
from wsejax.training.rundir import differing_fields

from .settings import ModelSettings, Settings

_FREE = ("data", "wafer.devices", "wafer.defects_file")  # may be named otherwise: data and defects are compared by content
_SHOWN = 8


def sources() -> dict[str, Path]:
    """Folders of the sources that belong to a run besides wsejax's."""
    return {"models": Path(next(iter(models.__path__))), "experiments": Path(__file__).parent}


def origin_of(
    settings: Settings,
    config: Mapping[str, Any],
    corpus: Corpus,
    wafer: wse.Wafer | None,
    program: Mapping[str, Any],
    report: Callable[[str], None],
) -> dict[str, Any]:
    """What the manifest of a run begins with.

    Args:
      config: as config.json has it.
      program: from `program_digest`, of the train step.
      report: is told, of a run that is done again, what is not as it was there and may change its bits.
    """
    given = as_json(dataclasses.asdict(settings))
    for name in ("out", "distributed"):  # where and in how many processes it ran
        del given[name]
    files = [{"name": name, "bytes": count, "sha256": digest} for name, count, digest in corpus.files]
    data = {"sha256": corpus.digest, "library": not settings.data, "files": files}
    made = origin(settings=given, config=as_json(config), data=data, program=program, wafer=wafer, packages=sources())
    if settings.from_manifest is not None and (words := _changed(begin_of(settings.from_manifest), made)):
        report(f"not all is as the run of {settings.from_manifest} had it, so bits may differ: {'; '.join(words)}")
    return made


def _changed(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What else decides a run's numbers: versions by value, what has a digest by name."""
    digests = [f"sources of {name}" for name in now["sources"] if then["sources"].get(name) != now["sources"][name]]
    digests += ["the train step"] if then["program"] != now["program"] else []
    return digests + differing_fields(then["versions"], now["versions"])


def begin_of(manifest: Path) -> dict[str, Any]:
    """The content of a manifest's first entry.

    Raises:
      ManifestError: there is no such manifest, it begins with nothing, or it was tampered with.
    """
    chain = read_chain(manifest)
    if chain.problems or not chain.entries:
        why = f"was tampered with: {chain.problems[0]}" if chain.problems else "has no entry"
        raise ManifestError(f"--from-manifest {manifest} {why}; give one that `wsejax verify` finds whole")
    return dict(chain.entries[0].content)


def settings_of(manifest: Path) -> Settings:
    """The settings of the run that a manifest tells of, the model as it was resolved; --out as by default.

    Raises:
      ManifestError: as `begin_of`, or its settings are not those of this version.
    """
    begin = begin_of(manifest)
    values = begin["settings"] | {"from_manifest": str(manifest)}
    resolved = begin["config"]["model"]
    names = [field.name for field in dataclasses.fields(ModelSettings) if field.name in resolved]
    values["model"] = values["model"] | {name: resolved[name] for name in names}
    try:
        return _revived(Settings, values)
    except (TypeError, KeyError) as error:
        raise ManifestError(
            f"--from-manifest {manifest}: its settings are not those of this version ({error}); use the sources that it names"
        ) from None


def _revived(kind: type, values: Mapping[str, Any]) -> Any:
    """A dataclass of settings from JSON; what was not written has its default.

    Raises:
      TypeError: a field that there is no longer.
    """
    hints = typing.get_type_hints(kind)
    made = {}
    for name, value in values.items():
        hint = hints.get(name)
        if dataclasses.is_dataclass(hint) and isinstance(value, Mapping):
            made[name] = _revived(typing.cast(type, hint), value)
        else:
            is_path = Path in (hint, *typing.get_args(hint))
            made[name] = Path(value) if is_path and isinstance(value, str) else _tuples(value)
    return kind(**made)


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def check_same_run(manifest: Path, config: Mapping[str, Any], corpus: Corpus) -> None:
    """Raises ManifestError, naming what differs, where a run is not the one that a manifest tells of.

    Where its data lie, and the devices that emulate its wafer, may differ; the data's bytes and the wafer's defects may not.
    """
    begin = begin_of(manifest)
    if corpus.digest != begin["data"]["sha256"]:
        words = _differing_data(begin["data"]["files"], corpus)
        said = f"--from-manifest {manifest}: the data are not those of that run ({words})"
        raise ManifestError(f"{said}; bring them back, or name them by --data")
    free = tuple(f"{name}:" for name in _FREE)
    fields = [words for words in differing_fields(begin["config"], as_json(config)) if not words.startswith(free)]
    if fields:
        said = f"--from-manifest {manifest}: this would be another run than that one ({'; '.join(fields[:_SHOWN])})"
        raise ManifestError(f"{said}; leave those flags out, or start without --from-manifest")


def _differing_data(recorded: list[dict[str, Any]], corpus: Corpus) -> str:
    then = {one["name"]: one["sha256"] for one in recorded}
    now = {name: digest for name, _, digest in corpus.files}
    missing, new = sorted(then.keys() - now.keys()), sorted(now.keys() - then.keys())
    changed = sorted(name for name in then.keys() & now.keys() if then[name] != now[name])
    kinds = (("missing", missing), ("changed", changed), ("not of that run", new))
    words = [f"{kind}: {', '.join(names[:_SHOWN])}{', ...' if len(names) > _SHOWN else ''}" for kind, names in kinds if names]
    return "; ".join(words) or "the same files in another order"
