"""The reference reader: an alert's bytes to its light curve, plainly, by the rules of docs/rules.md.

It shares no code with the product and takes no care of speed or of damaged bytes. Tests compare the product with it.
"""

import io
import json
import math
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, cast

import fastavro

SCHEMAS = Path(__file__).resolve().parent.parent / "schemas"
Record = dict[str, Any]
Point = tuple[
    Any, float, str | None, float | None, float | None, bool
]  # exposure, MJD TAI, band, flux, error, detected
FORCED, TRIGGER, DETECTION = 0, 1, 2  # of one exposure the smallest wins


def light_curve(data: bytes, survey: str, zero_point: float = 31.4) -> Record:
    """Lists mjd_tai, band, flux, flux_err (nJy), detected, sorted by time; source_id, object_id (text or None)."""
    read = {"lsst": lsst, "ztf": ztf, "elasticc": elasticc}[survey]
    source_id, object_id, newest, points = read(decode(data), zero_point)
    best: dict[Any, Point] = {}
    for _, point in sorted(points, key=lambda item: item[0]):
        exposure, mjd_tai, band, flux, flux_err, detected = point
        if not usable(band, flux, flux_err) or mjd_tai > newest:
            continue
        first = best.setdefault((exposure, band), point)
        best[exposure, band] = (*first[:5], first[5] or detected)
    curve = sorted(best.values(), key=lambda point: (point[1], point[2]))
    names = ("mjd_tai", "band", "flux", "flux_err", "detected")
    lists = {name: [point[i] for point in curve] for i, name in enumerate(names, start=1)}
    return {"source_id": source_id, "object_id": object_id, **lists}


def decode(data: bytes) -> Record:
    """The whole alert, whatever its form: container, Confluent frame, bare ELAsTiCC body."""
    if data.startswith(b"Obj\x01"):
        return cast(Record, next(iter(fastavro.reader(io.BytesIO(data)))))
    lsst = SCHEMAS / "lsst" / f"{int.from_bytes(data[1:5])}.avsc"
    if data[0] == 0 and lsst.exists():
        return body(data[5:], lsst)
    fits = []
    for path in sorted((SCHEMAS / "elasticc").glob("*.avsc")):
        try:
            fits.append(body(data, path))
        except (EOFError, ValueError, IndexError, AssertionError):
            continue
    return fits[0]  # where two layouts fit, they differ in nothing but the (absent) object


def body(data: bytes, schema: Path) -> Record:
    """One record that fills the bytes."""
    file = io.BytesIO(data)
    record = fastavro.schemaless_reader(file, parsed(schema), None)
    assert file.tell() == len(data)
    return cast(Record, record)


@cache
def parsed(path: Path) -> Any:
    """The schema of a file."""
    return fastavro.parse_schema(json.loads(path.read_text()))


def usable(band: str | None, flux: float | None, flux_err: float | None) -> bool:
    """Whether a measurement is one at all."""
    if band is None or flux is None or flux_err is None or -99999 in (flux, flux_err):
        return False
    return math.isfinite(flux) and math.isfinite(flux_err) and flux_err > 0


Read = tuple[int, str | None, float, Iterator[tuple[int, Point]]]


def history(alert: Record, forced: str, detections: str, own: str) -> Iterator[tuple[int, Record]]:
    """All records that may be points, each with its rank."""
    yield from ((FORCED, record) for record in alert.get(forced) or [])
    yield TRIGGER, alert[own]
    yield from ((DETECTION, record) for record in alert[detections] or [])


def lsst(alert: Record, zero_point: float) -> Read:
    """Fluxes are in nJy whatever zero_point says; a missing id is 0 as well as null."""
    own = alert["diaSource"]
    object_id = (alert["diaObject"] or {}).get("diaObjectId") or own["diaObjectId"]
    quality = ("isDipole", "glint_trail", "psfFlux_flag", "pixelFlags_bad")
    flags = (*quality, "pixelFlags_crCenter", "pixelFlags_saturatedCenter")

    def points() -> Iterator[tuple[int, Point]]:
        for rank, record in history(alert, "prvDiaForcedSources", "prvDiaSources", "diaSource"):
            if record.get("timeWithdrawnMjdTai") is not None:
                continue
            reliability = record.get("reliability")
            good = not any(record.get(flag) for flag in flags) and (reliability is None or reliability >= 0.5)
            band = f"lsst-{record['band']}" if record["band"] in set("ugrizy") else None
            key, flux, flux_err = (record["visit"], record["detector"]), record["psfFlux"], record["psfFluxErr"]
            yield rank, (key, record["midpointMjdTai"], band, flux, flux_err, rank != FORCED and good)

    return own["diaSourceId"], str(object_id) if object_id else None, own["midpointMjdTai"], points()


def elasticc(alert: Record, zero_point: float) -> Read:
    """Old names; zero_point is that of the fluxes."""
    own, scale = alert["diaSource"], 10 ** (0.4 * (31.4 - zero_point))
    object_id = (alert["diaObject"] or {}).get("diaObjectId") or own["diaObjectId"]

    def points() -> Iterator[tuple[int, Point]]:
        for rank, record in history(alert, "prvDiaForcedSources", "prvDiaSources", "diaSource"):
            label, time = record["filterName"], record["midPointTai"]
            band = f"lsst-{label.lower()}" if label in set("ugrizyY") else None
            yield rank, (time, time, band, record["psFlux"] * scale, record["psFluxErr"] * scale, rank != FORCED)

    return own["diaSourceId"], str(object_id) if object_id else None, own["midPointTai"], points()


def ztf(alert: Record, zero_point: float) -> Read:
    """Magnitudes and forced counts to nJy; JD UTC at the start of an exposure to MJD TAI at its middle."""

    def middle(record: Record) -> float:
        exposure_s = record.get("exptime")
        seconds = 37 + (30.0 if exposure_s is None else exposure_s) / 2
        return cast(float, record["jd"]) - 2400000.5 + seconds / 86400

    def points() -> Iterator[tuple[int, Point]]:
        for rank, record in history(alert, "fp_hists", "prv_candidates", "candidate"):
            key = record["jd"] if record["pid"] is None else record["pid"]
            band = {1: "ztf-g", 2: "ztf-r", 3: "ztf-i"}.get(record["fid"])
            measure: Callable[[Record], Any] = forced_flux if rank == FORCED else detected_flux
            if record["programid"] == 1:
                yield rank, (key, middle(record), band, *measure(record), rank != FORCED and good(record))

    own = alert["candidate"]
    return own["candid"], alert["objectId"], middle(own), points()


def forced_flux(record: Record) -> tuple[float | None, float | None]:
    """Counts at the zero point of their own image; procstatus is not asked."""
    flux, flux_err, zero_point = record["forcediffimflux"], record["forcediffimfluxunc"], record["magzpsci"]
    if flux in (None, -99999) or flux_err in (None, -99999) or zero_point is None:
        return None, None
    scale = 10 ** (0.4 * (31.4 - zero_point))
    return flux * scale, flux_err * scale


def detected_flux(record: Record) -> tuple[float | None, float | None]:
    """Magnitude and sign; an upper limit has no magnitude and is no point."""
    if record["magpsf"] is None or record["sigmapsf"] is None:
        return None, None
    flux = 10 ** (0.4 * (31.4 - record["magpsf"]))
    return flux if record["isdiffpos"] in ("t", "1") else -flux, flux * record["sigmapsf"] * 0.4 * math.log(10)


def good(record: Record) -> bool:
    """Whether a ZTF detection counts as one."""
    drb, rb = record.get("drb"), record.get("rb")
    real = drb >= 0.5 if drb is not None else rb is None or rb >= 0.55
    return real and not (record.get("nbad") or 0) > 0
