"""Channels: which files are the channels of one study. A trailing ``_0000`` may be a channel or a patient's number.

It is a channel where dataset.json names the channels and a study has all of them, where a label map has the name
without it, or where every study of a folder has the same full set of them. In doubt files stay studies of their own:
patients must not be mixed.
"""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

from data.quarantine import BadStudy

_BESIDE = BadStudy(
    "a file beside files that are channels of its name",
    "one study of a name",
    "rename it, or remove it or the channels",
)
_CHANNEL = re.compile(r"(.+)_(\d{4})", re.ASCII)


@dataclass(frozen=True)
class Group:
    """The stems of the files of one study in order of its channels, their number, and what is wrong with them."""

    stems: tuple[str, ...]
    num_channels: int
    fault: BadStudy | None = None


def group_channels(
    stems: Collection[str], whole: Collection[str], labelled: Collection[str], num_named: int
) -> dict[str, Group]:
    """Map the name of each study to its files.

    whole       stems that are known to be a study's name
    labelled    names of label maps
    num_named   number of channels in dataset.json; 0 where it names none
    """
    numbered: dict[str, dict[int, str]] = {}
    for stem in sorted(set(stems) - set(whole)):
        if match := _CHANNEL.fullmatch(stem):
            numbered.setdefault(match[1], {})[int(match[2])] = stem
    num_channels = num_named or _num_channels(stems, numbered, labelled)
    full = set(range(num_channels))
    is_proven = any(numbers.keys() == full for numbers in numbered.values())
    groups: dict[str, Group] = {}
    for name, numbers in numbered.items():
        if name in labelled or (is_proven and not full.isdisjoint(numbers)):
            files = tuple(numbers[number] for number in sorted(numbers))
            groups[name] = Group(files, num_channels, _wrong_set(set(numbers), full))
    stray = _wrong_set({0}, full) if is_proven and num_channels > 1 else None
    taken = {stem for group in groups.values() for stem in group.stems}
    for stem in sorted(set(stems) - taken):
        match = None if stem in whole else _CHANNEL.fullmatch(stem)
        if stem in groups:
            groups[stem] = replace(groups[stem], stems=(*groups[stem].stems, stem), fault=_BESIDE)
        else:
            groups[stem] = Group((stem,), num_channels or 1, stray if match else None)
    return groups


def _num_channels(
    stems: Collection[str], numbered: Mapping[str, Mapping[int, str]], labelled: Collection[str]
) -> int:
    """Return the number of channels that the names alone prove; 0 where they prove none."""
    proven = [max(numbers) + 1 for name, numbers in numbered.items() if name in labelled]
    if proven:
        return max(proven)
    sets = {tuple(sorted(numbers)) for numbers in numbered.values()}
    if len(sets) != 1 or sum(map(len, numbered.values())) != len(stems):
        return 0
    (numbers,) = sets
    is_full = numbers == tuple(range(len(numbers)))
    return len(numbers) if is_full and (len(numbers) == 1 or len(numbered) > 1) else 0


def _wrong_set(numbers: set[int], full: set[int]) -> BadStudy | None:
    if numbers == full:
        return None
    if numbers < full:
        return BadStudy(f"{len(numbers)} of {len(full)} channels", "all of them", "add the missing channel's file")
    return BadStudy(
        f"{len(numbers)} files for {len(full)} channels",
        f"channels numbered from 0 to {len(full) - 1}",
        "name all channels in dataset.json, or remove the files that are none",
    )
