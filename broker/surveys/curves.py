"""Plain light curves in tables: one object's points, its newest one in place of an alert's own source.

The names that columns go by in other people's tables stand here, as a survey's raw names stand in its table.
"""

from dataclasses import replace

from broker.surveys import Fields, Kind, Measurements, Survey

NAMES: dict[str, tuple[str, ...]] = {  # ours -> spellings in tables, in the order in which they win; case is ignored
    "object_id": ("object_id", "object", "objectid", "diaobjectid", "obj_id", "oid", "snid", "name"),
    "mjd": ("mjd", "mjd_tai", "midpointmjdtai"),
    "band": ("band", "passband", "filter", "flt"),
    "flux": ("flux", "psfflux", "diff_flux"),
    "flux_err": ("flux_err", "fluxerr", "flux_error", "psffluxerr", "e_flux"),
    "mag": ("mag", "magnitude", "magpsf"),
    "mag_err": ("mag_err", "magerr", "mag_error", "sigmapsf", "e_mag"),
    "zero_point": ("zero_point", "zeropoint", "zp", "zp_ab"),
    "detected": ("detected",),
    "is_negative": ("is_negative",),
    "ra": ("ra",),
    "dec": ("dec", "decl"),
}

_POINT: Fields = {"mjd": "double", "band": "string", "flux": "double", "flux_err": "double", "detected": "boolean"}


def _measurements(path: str, kind: Kind) -> Measurements:
    return Measurements(
        path=path,
        kind=kind,
        time="mjd",
        time_scale="mjd_tai",
        band="band",
        exposure=("mjd",),
        photometry="flux",
        value="flux",
        error="flux_err",
        detected="detected",
    )


def curves_of(thresholds: str, bands: tuple[str, ...]) -> Survey:
    """The table for light curves that are judged by the thresholds of a survey; bands: lightcurve.BANDS."""
    return replace(_CURVES, name=thresholds, bands={name: name for name in bands})


_CURVES = Survey(
    name="lsst",
    framing="bare",
    fields={
        "newest": _POINT | {"source_id": "long", "object_id": "string", "ra": "double", "dec": "double"},
        "points": [_POINT],
    },
    essential=("newest.source_id", "newest.mjd"),
    mandatory={"newest.source_id": (0, 2**63 - 1), "newest.mjd": (15_000, 90_000)},
    columns={
        "source_id": ("newest.source_id",),
        "object_id": ("newest.object_id",),
        "ra": ("newest.ra",),
        "dec": ("newest.dec",),
    },
    bands={},
    trigger="newest",
    measurements=(_measurements("points", "detection"), _measurements("newest", "trigger")),
)
