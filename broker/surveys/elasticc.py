"""ELAsTiCC: simulated LSST alerts, schema 0.9, bare bodies, old names; its zero point is a setting (31.4 or 27.5)."""

from broker.surveys import Fields, Kind, Measurements, Survey

_POINT: Fields = {"midPointTai": "double", "filterName": "string", "psFlux": "float", "psFluxErr": "float"}
_SOURCE: Fields = _POINT | {"diaSourceId": "long", "diaObjectId": "long", "ra": "double", "decl": "double"}


def _measurements(path: str, kind: Kind) -> Measurements:
    return Measurements(
        path=path,
        kind=kind,
        time="midPointTai",
        time_scale="mjd_tai",
        band="filterName",
        exposure=("midPointTai",),
        photometry="flux",
        value="psFlux",
        error="psFluxErr",
    )


ELASTICC = Survey(
    name="elasticc",
    framing="bare",
    fields={
        "alertId": "long",
        "diaSource": _SOURCE,
        "prvDiaSources": [_POINT],
        "prvDiaForcedSources": [_POINT],
        "diaObject": {"diaObjectId": "long"},
    },
    essential=("alertId", "diaSource.diaSourceId", "diaSource.midPointTai", "diaSource.psFlux"),
    mandatory={
        "diaSource.diaSourceId": (0, 2**63 - 1),
        "diaSource.midPointTai": (45_000, 90_000),
        "diaSource.ra": (-180, 360),  # its alerts have right ascensions down to -0.2 as well
        "diaSource.decl": (-90, 90),
    },
    columns={
        "source_id": ("diaSource.diaSourceId",),
        "object_id": ("diaObject.diaObjectId", "diaSource.diaObjectId"),
        "ra": ("diaSource.ra",),
        "dec": ("diaSource.decl",),
    },
    bands={b: f"lsst-{b}" for b in "ugrizy"} | {"Y": "lsst-y"},
    trigger="diaSource",
    measurements=(
        _measurements("prvDiaForcedSources", "forced"),
        _measurements("prvDiaSources", "detection"),
        _measurements("diaSource", "trigger"),
    ),
    missing_value=-99999.0,
)
