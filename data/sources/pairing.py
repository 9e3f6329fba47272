"""Pairing: find the label of an image by a pair of patterns with ``*``.

``images="*/CT_image*.nii.gz"`` and ``labels="*/CT_mask*.nii.gz"`` pair ``STS_008/CT_image.nii.gz`` with
``STS_008/CT_mask.nii.gz``: each ``*`` of the label's pattern stands for the same text as that of the image's.
A label's pattern may have fewer wildcards: ``labels="*/lesions.nii.gz"`` gives all images of a folder one label.
``{ct,mr}`` is a wildcard too, for one of these texts.
"""

import re
from dataclasses import dataclass

_WILDCARD = re.compile(r"\*\*/|\*|\?|\{[^{}]*\}")
_GROUPS = {"**/": "((?:[^/]+/)*)", "*": "([^/]*)", "?": "([^/])"}


@dataclass(frozen=True)
class Pattern:
    """A path pattern that captures the texts of its wildcards.

    ``**/`` any folders, ``*`` anything within a name, ``?`` one letter, ``{a,b}`` one of these.
    """

    text: str

    @property
    def num_wildcards(self) -> int:
        return len(_WILDCARD.findall(self.text))

    def match(self, path: str) -> tuple[str, ...] | None:
        """Return the texts that the wildcards stand for if the whole path matches, else None."""
        literals = [re.escape(part) for part in _WILDCARD.split(self.text)]
        groups = [_group(wildcard) for wildcard in _WILDCARD.findall(self.text)]
        regex = "".join(text for pair in zip(literals, [*groups, ""], strict=True) for text in pair)
        match = re.fullmatch(regex, path)
        return None if match is None else match.groups()

    def fill(self, values: tuple[str, ...]) -> str:
        """Return the path with these texts for its wildcards; surplus texts are dropped."""
        literals = _WILDCARD.split(self.text)
        used = values[: len(literals) - 1]
        return "".join(text for pair in zip(literals, [*used, ""], strict=True) for text in pair)


def _group(wildcard: str) -> str:
    if wildcard in _GROUPS:
        return _GROUPS[wildcard]
    return f"({'|'.join(re.escape(choice) for choice in wildcard[1:-1].split(','))})"


def check_pair(images: str | None, labels: str) -> None:
    """Raise ValueError where a label's pattern has more wildcards than the image's pattern."""
    have = Pattern(images).num_wildcards if images else 0
    need = Pattern(labels).num_wildcards
    if need > have:
        raise ValueError(
            f"labels={labels!r} has {need} wildcards but images={images!r} has {have}; expected at most as many, "
            "each standing for the same text; write both patterns with the same wildcards"
        )
