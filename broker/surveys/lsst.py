"""Rubin / LSST: Confluent frames, schemas 7.0-11.1, fluxes in nJy, mid-exposure times in TAI."""

from broker.surveys import Fields, Floor, Kind, Measurements, Survey

_POINT: Fields = {
    "visit": "long",
    "detector": "int",
    "midpointMjdTai": "double",
    "psfFlux": "float",
    "psfFluxErr": "float",
    "band": "string",
    "timeWithdrawnMjdTai": "double",  # from 9.0 (sources) and 11.1 (forced)
}
_DETECTION: Fields = _POINT | {
    "reliability": "float",
    "isDipole": "boolean",
    "glint_trail": "boolean",
    "psfFlux_flag": "boolean",
    "pixelFlags_bad": "boolean",
    "pixelFlags_crCenter": "boolean",
    "pixelFlags_saturatedCenter": "boolean",
}
_SOURCE: Fields = _DETECTION | {
    "diaSourceId": "long",
    "diaObjectId": "long",
    "ssObjectId": "long",
    "ra": "double",
    "dec": "double",
    "isNegative": "boolean",
    "is_negative": "boolean",  # its spelling in 7.3 and 7.4
    "pixelFlags_injected": "boolean",
    "pixelFlags_injectedCenter": "boolean",
    "pixelFlags_injected_template": "boolean",
    "pixelFlags_injected_templateCenter": "boolean",
}


def _measurements(path: str, kind: Kind) -> Measurements:
    return Measurements(
        path=path,
        kind=kind,
        time="midpointMjdTai",
        time_scale="mjd_tai",
        band="band",
        exposure=("visit", "detector"),
        photometry="flux",
        value="psfFlux",
        error="psfFluxErr",
        withdrawn="timeWithdrawnMjdTai",
    )


LSST = Survey(
    name="lsst",
    framing="confluent",
    fields={
        "diaSource": _SOURCE,
        "prvDiaSources": [_DETECTION],
        "prvDiaForcedSources": [_POINT],
        "diaObject": {"diaObjectId": "long", "firstDiaSourceMjdTai": "double"},
        "ssSource": {"ssObjectId": "long"},
    },
    essential=("diaSource.diaSourceId", "diaSource.midpointMjdTai", "diaSource.psfFlux", "diaSource.band"),
    mandatory={
        "diaSource.diaSourceId": (0, 2**63 - 1),
        "diaSource.midpointMjdTai": (45_000, 90_000),  # 1982 to 2105: test alerts reach back to 2016
        "diaSource.ra": (0, 360),
        "diaSource.dec": (-90, 90),
    },
    columns={
        "source_id": ("diaSource.diaSourceId",),
        "object_id": ("diaObject.diaObjectId", "diaSource.diaObjectId"),
        "ra": ("diaSource.ra",),
        "dec": ("diaSource.dec",),
        "is_negative": ("diaSource.isNegative", "diaSource.is_negative"),
        "reliability": ("diaSource.reliability",),
        "visit": ("diaSource.visit",),
        "detector": ("diaSource.detector",),
        "first_mjd_tai": ("diaObject.firstDiaSourceMjdTai",),
    },
    bands={b: f"lsst-{b}" for b in "ugrizy"},
    trigger="diaSource",
    measurements=(
        _measurements("prvDiaForcedSources", "forced"),
        _measurements("prvDiaSources", "detection"),
        _measurements("diaSource", "trigger"),
    ),
    floors=(
        Floor("injected", "diaSource.pixelFlags_injected", "true", switch="lsst_abstains_on_injected"),
        Floor("injected", "diaSource.pixelFlags_injectedCenter", "true", switch="lsst_abstains_on_injected"),
        Floor("injected", "diaSource.pixelFlags_injected_template", "true", switch="lsst_abstains_on_injected"),
        Floor("injected", "diaSource.pixelFlags_injected_templateCenter", "true", switch="lsst_abstains_on_injected"),
        Floor("withdrawn", "diaSource.timeWithdrawnMjdTai", "set"),
        Floor("solar_system", "diaSource.ssObjectId", "positive"),
        Floor("solar_system", "ssSource.ssObjectId", "positive"),
        Floor("bad_pixels", "diaSource.psfFlux_flag", "true", switch="lsst_abstains_on_psf_flux_flag", history=True),
        Floor("bad_pixels", "diaSource.pixelFlags_bad", "true", switch="lsst_abstains_on_bad_pixels", history=True),
        Floor(
            "bad_pixels",
            "diaSource.pixelFlags_crCenter",
            "true",
            switch="lsst_abstains_on_cosmic_ray_center",
            history=True,
        ),
        Floor(
            "bad_pixels",
            "diaSource.pixelFlags_saturatedCenter",
            "true",
            switch="lsst_abstains_on_saturated_center",
            history=True,
        ),
        Floor("low_reliability", "diaSource.isDipole", "true", switch="lsst_abstains_on_dipole", history=True),
        Floor("low_reliability", "diaSource.glint_trail", "true", switch="lsst_abstains_on_glint_trail", history=True),
        Floor("low_reliability", "diaSource.reliability", "below", policy="lsst_min_reliability", history=True),
    ),
    missing_value=-99999.0,
)
