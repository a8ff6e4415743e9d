"""The chemical elements."""

from collections.abc import Mapping
from math import gcd

__all__ = ["SYMBOLS", "formula_rank", "reduced_formula"]

_BY_PERIOD = (
    "H He "
    "Li Be B C N O F Ne "
    "Na Mg Al Si P S Cl Ar "
    "K Ca Sc Ti V Cr Mn Fe Co Ni Cu Zn Ga Ge As Se Br Kr "
    "Rb Sr Y Zr Nb Mo Tc Ru Rh Pd Ag Cd In Sn Sb Te I Xe "
    "Cs Ba La Ce Pr Nd Pm Sm Eu Gd Tb Dy Ho Er Tm Yb Lu "
    "Hf Ta W Re Os Ir Pt Au Hg Tl Pb Bi Po At Rn "
    "Fr Ra Ac Th Pa U Np Pu Am Cm Bk Cf Es Fm Md No Lr "
    "Rf Db Sg Bh Hs Mt Ds Rg Cn Nh Fl Mc Lv Ts Og"
)

SYMBOLS: tuple[str, ...] = tuple(_BY_PERIOD.split())
"""Element symbols by atomic number: SYMBOLS[0] is hydrogen."""

_BINARY_ORDER = "Xe Kr B Si C Sb As P N H Te Se S At I Br Cl O F"
_NONMETALS: tuple[str, ...] = tuple(_BINARY_ORDER.split())
"""The order of the nonmetals in a formula of a binary compound (IUPAC 1990, I-2.2.2.2)."""


def formula_rank(symbol: str) -> tuple[int, str]:
    """A key that sorts elements as chemists write them: metals by name, then nonmetals."""
    return (_NONMETALS.index(symbol) + 1 if symbol in _NONMETALS else 0, symbol)


def reduced_formula(counts: Mapping[str, int]) -> str:
    """The formula of atoms per element as chemists write it, metals first: "SrVO3"."""
    divisor = gcd(*counts.values()) or 1
    return "".join(
        symbol + (str(counts[symbol] // divisor) if counts[symbol] > divisor else "")
        for symbol in sorted(counts, key=formula_rank)
    )
