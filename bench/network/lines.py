"""The lines of the demo network: where each one drives, how often, and which shape it is there to exercise.

A line is a list of places; the roads between them bring the stops. `back` None: a one-way line that ends where it began.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple


class Line(NamedTuple):
    route_id: str
    short_name: str
    long_name: str
    color: str  # the text colour is worked out from it
    out: tuple[str, ...]
    back: tuple[str, ...] | None  # None: no second direction; () means `out` reversed
    heads: tuple[str, str]  # headsigns of the two directions
    frequency: str  # a key of FREQUENCIES
    layover_min: int  # shortest wait between two trips of a block
    timepoints: frozenset[str] = frozenset()  # beside the two ends
    hold_min: Mapping[str, int] = MappingProxyType({})  # a planned wait at a place inside the trip, minutes
    agency: str = "ALG"
    express: bool = False  # only the places, not the stops along the roads


# (service day minutes from, to, minutes between departures); times past 24:00 belong to the evening before
FREQUENCIES: dict[str, dict[str, tuple[tuple[int, int, int], ...]]] = {
    "trunk": {
        "WEEK": ((270, 360, 20), (360, 400, 12), (400, 570, 9), (570, 930, 11), (930, 1140, 9), (1140, 1290, 15), (1290, 1410, 20)),
        "END": ((300, 420, 25), (420, 1140, 15), (1140, 1410, 22)),
    },
    "urban": {
        "WEEK": ((285, 375, 25), (375, 570, 12), (570, 930, 15), (930, 1140, 12), (1140, 1300, 20), (1300, 1400, 30)),
        "END": ((315, 420, 30), (420, 1140, 20), (1140, 1400, 30)),
    },
    "suburb": {
        "WEEK": ((300, 375, 30), (375, 570, 16), (570, 930, 20), (930, 1140, 16), (1140, 1350, 30)),
        "END": ((330, 1350, 30),),
    },
    "night": {"DAY": ((1350, 1740, 20),)},  # 22:30 to 29:00
    "coach": {"DAY": ((0, 300, 40), (300, 600, 30), (600, 960, 40), (960, 1200, 30), (1200, 1440, 40))},
    "coach_short": {"DAY": ((10, 300, 50), (300, 1200, 30), (1200, 1440, 50))},
}

LINES: tuple[Line, ...] = (
    Line("101", "101", "Place des Martyrs - El Harrach", "0B6E4F",
         ("martyrs", "poste", "tafourah", "mai", "hamma", "fusilles", "hussein", "kharrouba", "harrach"), (),
         ("El Harrach", "Place des Martyrs"), "trunk", 6, frozenset({"poste", "mai", "fusilles", "kharrouba"})),
    Line("104", "104", "Place Audin - Chéraga", "8A1C7C",
         ("audin", "telemly", "biar", "chateauneuf", "aknoun", "dely", "cheraga"), (),
         ("Chéraga", "Place Audin"), "trunk", 6, frozenset({"biar", "aknoun"})),
    # a lollipop: up the hill, once round the heights, and down the same way
    Line("107", "107", "Bab El Oued - Hauteurs de Bouzaréah", "B3471B",
         ("babeloued", "climat", "vallon", "bouzareah", "sidimedjber", "celeste", "bouzareah", "vallon", "climat", "babeloued"), None,
         ("Bouzaréah par l'Observatoire", ""), "urban", 8, frozenset({"vallon", "bouzareah"})),
    Line("112", "112", "1er Mai - Aéroport", "1454A3",
         ("mai", "hamma", "fusilles", "hussein", "kharrouba", "bananiers", "cinqjuillet", "babezzouar", "darbeida", "aeroport"), (),
         ("Aéroport", "1er Mai"), "trunk", 8, frozenset({"kharrouba", "cinqjuillet", "darbeida"})),
    # a loop: ends where it began, always the same way round
    Line("115", "115", "Circulaire Centre et Hauteurs", "A3123A",
         ("martyrs", "poste", "audin", "mai", "madania", "mouradia", "voirol", "biar", "casbah", "martyrs"), None,
         ("Circulaire par El Madania et El Biar", ""), "urban", 8, frozenset({"mai", "mouradia", "biar"}), {"mouradia": 3}),
    Line("118", "118", "Tafourah - Aïn Bénian", "00697A",
         ("tafourah", "poste", "martyrs", "babeloued", "bologhine", "hamidou", "romains", "benian"), (),
         ("Aïn Bénian", "Tafourah"), "trunk", 7, frozenset({"martyrs", "bologhine", "romains"})),
    Line("121", "121", "Hussein Dey - Baraki", "5B4A00",
         ("hussein", "kouba", "jolievue", "naadja", "baraki"), (),
         ("Baraki", "Hussein Dey"), "urban", 6, frozenset({"kouba", "naadja"})),
    # out and back inside the trip: the hospital is a spur, so Vieux Kouba is served twice
    Line("124", "124", "Les Fusillés - Hôpital - Birkhadem", "3F3D9E",
         ("fusilles", "vieuxkouba", "hopital", "vieuxkouba", "garidi", "birkhadem"), (),
         ("Birkhadem par l'Hôpital", "Les Fusillés par l'Hôpital"), "urban", 6, frozenset({"vieuxkouba"}), {"hopital": 4}),
    # a figure of eight that crosses itself at El Mouradia
    Line("127", "127", "Huit des Hauteurs", "6B2D12",
         ("rais", "mouradia", "madania", "mai", "hamma", "madania", "mouradia", "voirol", "hydra", "hamdine", "rais"), None,
         ("Le Huit: 1er Mai, Hydra", ""), "urban", 8, frozenset({"mouradia", "mai", "hydra"})),
    Line("131", "131", "El Harrach - Bordj El Bahri", "2B6A1E",
         ("harrach", "belfort", "babezzouar", "cinqjuillet", "kiffan", "stamboul", "dergana", "bahri"),
         ("bahri", "stamboul", "kiffan", "cinqjuillet", "babezzouar", "belfort", "harrach"),
         ("Bordj El Bahri", "El Harrach"), "suburb", 8, frozenset({"babezzouar", "kiffan"})),
    Line("134", "134", "Ben Aknoun - Zéralda", "7A3E00",
         ("aknoun", "messous", "cheraga", "staoueli", "sidifredj", "zeralda"), (),
         ("Zéralda", "Ben Aknoun"), "suburb", 10, frozenset({"cheraga", "staoueli"})),
    Line("137", "137", "Bir Mourad Raïs - Draria", "4A4A4A",
         ("mouradia", "rais", "birkhadem", "draria"), (),
         ("Draria", "El Mouradia"), "suburb", 7, frozenset({"birkhadem"})),
    Line("N1", "N1", "Nuit: Martyrs - Aéroport", "101B4B",
         ("martyrs", "poste", "tafourah", "mai", "hamma", "fusilles", "hussein", "kharrouba", "bananiers",
          "cinqjuillet", "babezzouar", "darbeida", "aeroport"), (),
         ("Aéroport", "Place des Martyrs"), "night", 8, frozenset({"mai", "kharrouba", "darbeida"})),
    Line("N2", "N2", "Nuit: Martyrs - Chéraga - Zéralda", "101B4B",
         ("martyrs", "poste", "audin", "telemly", "biar", "chateauneuf", "aknoun", "dely", "cheraga",
          "staoueli", "sidifredj", "zeralda"), (),
         ("Zéralda", "Place des Martyrs"), "night", 8, frozenset({"biar", "cheraga"})),
    Line("N3", "N3", "Nuit: 1er Mai - Aïn Bénian", "101B4B",
         ("mai", "tafourah", "poste", "martyrs", "babeloued", "bologhine", "hamidou", "romains", "benian"), (),
         ("Aïn Bénian", "1er Mai"), "night", 8, frozenset({"martyrs", "hamidou"})),
    Line("W1", "W1", "Alger - Blida - Chlef - Oran", "9C2A00",
         ("kharrouba", "blida", "khemis", "defla", "chlef", "rhiou", "relizane", "sig", "oran"), (),
         ("Oran", "Alger Kharrouba"), "coach", 50, frozenset({"blida", "chlef", "relizane"}), {"chlef": 15}, "SAH", True),
    Line("E1", "E1", "Alger - Bouira - Sétif - Constantine", "005B9A",
         ("kharrouba", "~thenia", "bouira", "bba", "setif", "eulma", "chelghoum", "constantine"), (),
         ("Constantine", "Alger Kharrouba"), "coach", 50, frozenset({"bouira", "setif"}), {"setif": 20}, "HPV", True),
    Line("E2", "E2", "Alger - Tizi Ouzou - Béjaïa", "1E6B52",
         ("kharrouba", "~thenia", "tizi", "azazga", "adekar", "kseur", "bejaia"), (),
         ("Béjaïa", "Alger Kharrouba"), "coach_short", 45, frozenset({"tizi", "azazga"}), {"tizi": 10}, "HPV", True),
)  # fmt: skip

# id: (name, telephone)
AGENCIES: dict[str, tuple[str, str]] = {
    "ALG": ("Étrama Alger", "+213 21 00 01 00"),
    "SAH": ("Sahel Autocars", "+213 21 00 02 00"),
    "HPV": ("Hauts Plateaux Voyages", "+213 21 00 03 00"),
}
