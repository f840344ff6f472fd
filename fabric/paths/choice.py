"""Choose the link between two nodes from what each offers and wants, and say why. Pure: no IO, no clock."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fabric.links.rail_link import UCX, missing

SHM = "shm"
BETWEEN_NODES = ("ucx", "tcp")  #: links that can join nodes, the better first


@dataclass(frozen=True, slots=True)
class Ends:
    """What one node brings: its links that work, and those its operator wants, each the better first."""

    name: str
    offers: tuple[str, ...] = ("tcp",)
    wants: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Path:
    """One choice: the link taken (empty: none), the one preferred, and the reason in words."""

    taken: str
    preferred: str
    reason: str

    @property
    def is_downgrade(self) -> bool:
        """Tell whether something worse than the preferred link is used."""
        return self.taken != self.preferred


LOCAL = Path(SHM, SHM, "both processes are on this node")


def available_links() -> tuple[str, ...]:
    """Return the links between nodes that this installation can use, the better first."""
    has_ucx = not missing(UCX)
    return tuple(link for link in BETWEEN_NODES if link != "ucx" or has_ucx)


def offered_links(wanted: Sequence[str]) -> tuple[str, ...]:
    """Return the links that a node offers whose operator wants only `wanted`, in that order (empty: any)."""
    available = available_links()
    return tuple(link for link in wanted if link in available) if wanted else available


def choose(here: Ends, there: Ends) -> Path:
    """Choose the link from `here` to `there`.

    The preferred link is the first that either node's operator wants, this node's first; without a wish the best that
    either node offers. Taken is the first in that order which both offer.

    Returns
    -------
    Path
        `taken` is empty when the nodes have no link in common.
    """
    order = _order(here, there)
    both = [link for link in order if link in here.offers and link in there.offers]
    preferred = order[0]
    if not both:
        return Path("", preferred, f"no link in common: {_lacking(preferred, here, there)}")
    if both[0] == preferred:
        wish = (
            "wanted" if preferred in here.wants + there.wants else "the best that both nodes offer"
        )
        return Path(preferred, preferred, wish)
    return Path(both[0], preferred, _lacking(preferred, here, there))


def _order(here: Ends, there: Ends) -> list[str]:
    wishes: Sequence[str] = here.wants + there.wants
    rest = [link for link in BETWEEN_NODES if link in here.offers or link in there.offers]
    return list(dict.fromkeys([*wishes, *rest]))


def _lacking(link: str, here: Ends, there: Ends) -> str:
    lacking = [f"node {end.name!r}" for end in (here, there) if link not in end.offers]
    return f"{link} is not there on {' and '.join(lacking)}"
