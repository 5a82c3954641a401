"""ZTF: Avro containers, schemas 1.8-4.02, magnitudes and forced fluxes at their own zero point, JD UTC at the start."""

from broker.surveys import Fields, Floor, Kind, Measurements, Survey

_POINT: Fields = {
    "jd": "double",
    "fid": "int",
    "pid": "long",
    "programid": "int",
    "exptime": "float",
    "magzpsci": "float",
}
_DETECTION: Fields = _POINT | {
    "isdiffpos": "string",
    "magpsf": "float",
    "sigmapsf": "float",
    "rb": "float",
    "drb": "float",
    "nbad": "int",
    "ssdistnr": "float",
    "ssmagnr": "float",
}


def _detections(path: str, kind: Kind) -> Measurements:
    return Measurements(
        path=path,
        kind=kind,
        time="jd",
        time_scale="jd_utc_start",
        exposure_s="exptime",
        band="fid",
        exposure=("pid", "jd"),
        photometry="magnitude",
        value="magpsf",
        error="sigmapsf",
        positive="isdiffpos",
        programid="programid",
    )


ZTF = Survey(
    name="ztf",
    framing="container",
    fields={
        "objectId": "string",
        "candidate": _DETECTION
        | {"candid": "long", "ra": "double", "dec": "double", "field": "int", "rcid": "int", "jdstarthist": "double"},
        "prv_candidates": [_DETECTION],
        "fp_hists": [_POINT | {"forcediffimflux": "float", "forcediffimfluxunc": "float"}],  # from 4.0
    },
    essential=("objectId", "candidate.candid", "candidate.jd", "candidate.fid", "candidate.magpsf"),
    mandatory={
        "candidate.candid": (0, 2**63 - 1),
        "candidate.jd": (2_445_000.5, 2_490_000.5),
        "candidate.ra": (0, 360),
        "candidate.dec": (-90, 90),
    },
    columns={
        "source_id": ("candidate.candid",),
        "object_id": ("objectId",),
        "programid": ("candidate.programid",),
        "ra": ("candidate.ra",),
        "dec": ("candidate.dec",),
        "reliability": ("candidate.drb", "candidate.rb"),
        "field": ("candidate.field",),
        "rcid": ("candidate.rcid",),
        "first_mjd_tai": ("candidate.jdstarthist",),
    },
    texts=("objectId",),
    bands={1: "ztf-g", 2: "ztf-r", 3: "ztf-i"},
    trigger="candidate",
    measurements=(
        Measurements(
            path="fp_hists",
            kind="forced",
            time="jd",
            time_scale="jd_utc_start",
            exposure_s="exptime",
            band="fid",
            exposure=("pid", "jd"),
            photometry="counts",
            value="forcediffimflux",
            error="forcediffimfluxunc",
            zero_point="magzpsci",
            programid="programid",
        ),
        _detections("prv_candidates", "detection"),
        _detections("candidate", "trigger"),
    ),
    floors=(
        Floor("not_public", "candidate.programid", "outside", policy="programids"),
        Floor(
            "solar_system",
            "candidate.ssdistnr",
            "below",
            policy="solar_system_arcsec",
            all_of=(("candidate.ssdistnr", "not_negative"), ("candidate.ssmagnr", "not_negative")),
        ),
        Floor("bad_pixels", "candidate.nbad", "above", policy="ztf_max_nbad", history=True),
        Floor("low_reliability", "candidate.drb", "below", policy="ztf_min_drb", history=True),
        Floor("low_reliability", "candidate.rb", "below", policy="ztf_min_rb", unless="candidate.drb", history=True),
    ),
    missing_value=-99999.0,
    true_labels=("t", "1"),
)
