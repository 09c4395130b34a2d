"""Tickets: forty bytes and a proof, as text in a QR code. Pure.

    byte 0 form (1) | 1 key id | 3 trip | 11 ticket id | 27 seat | 29 from | 30 to | 31 ticket version | 32 valid from | 36 valid to
    (big endian), then the proof: 64 bytes of Ed25519 (RFC 8032), or 32 of HMAC-SHA256 (RFC 2104),

all of it in base45 (RFC 9285), which a QR code stores as alphanumeric: 156 characters, or 108.

Promises: the same ticket and key make the same text, so nothing signed has to be kept. Which algorithm proves a ticket is a property of the
key that the verifier holds under the ticket's key id; a ticket cannot choose it. Verifying needs public material alone (Ed25519), or the
secret of one trip (HMAC, for small devices that get their trip's secret with the manifest). A change to any byte is refused: FORGED, and
ALTERED where the verifier knows that the ticket it speaks of was issued.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import struct
import uuid
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, Final

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from engine.errors import Invalid

ED25519, HMAC = "ed25519", "hmac"
FORM: Final = 1
# form u8, key id u16, trip 8 bytes, ticket id 16 bytes, seat u16, from place u8, to place u8, ticket version u8, valid from u32, to u32 (s)
PAYLOAD: Final = struct.Struct(">BH8s16sHBBBII")
PROOF_SIZE: Final = {ED25519: 64, HMAC: 32}
TEXT_MAX: Final = 156  # characters of the longest ticket

# What a verifier says. The order is that of the questions: the first "no" is the answer.
VALID = "VALID"
MALFORMED, UNKNOWN_KEY, FORGED, ALTERED, WRONG_TRIP = "MALFORMED", "UNKNOWN_KEY", "FORGED", "ALTERED", "WRONG_TRIP"
NOT_YET_VALID, EXPIRED, REVOKED, SUPERSEDED = "NOT_YET_VALID", "EXPIRED", "REVOKED", "SUPERSEDED"
UNKNOWN_TICKET, NOT_CONFIRMED, NO_SHOW, ALREADY_BOARDED = "UNKNOWN_TICKET", "NOT_CONFIRMED", "NO_SHOW", "ALREADY_BOARDED"

MEANINGS: Final[dict[str, str]] = {
    VALID: "good for this trip now",
    MALFORMED: "no ticket of ours: the text does not decode",
    UNKNOWN_KEY: "signed with a key that this verifier does not have: fetch the keys again, or it is forged",
    FORGED: "the proof does not hold",
    ALTERED: "the proof does not hold, and the ticket it speaks of was issued: somebody changed it",
    WRONG_TRIP: "a good ticket for another trip",
    NOT_YET_VALID: "its time has not come",
    EXPIRED: "its time is over",
    REVOKED: "cancelled, exchanged or taken back",
    SUPERSEDED: "a newer version of this ticket was issued",
    UNKNOWN_TICKET: "the proof holds, and there is no such ticket here",
    NOT_CONFIRMED: "its booking is not paid for",
    NO_SHOW: "its passenger was given up when the bus had left",
    ALREADY_BOARDED: "somebody has boarded with it",
}


class Payload(msgspec.Struct, frozen=True):
    """What a ticket says. `seat` is a hint: after a bus swap the manifest tells the seat. Places count the trip's stops from 0."""

    key_id: int
    trip: bytes  # digest of the trip's id: `trip_digest`
    ticket_id: str
    seat: int
    from_place: int
    to_place: int
    version: int  # of the ticket
    valid_from_s: int  # UTC seconds since 1970; the first second at which it is good
    valid_to_s: int  # the first at which it is no more


def trip_digest(trip_id: str) -> bytes:
    """The eight bytes by which a ticket names its trip instance."""
    return hashlib.sha256(trip_id.encode()).digest()[:8]


def pack(payload: Payload) -> bytes:
    """Its 40 bytes. Raises `Invalid` for a number that has no room."""
    p = payload
    try:
        return PAYLOAD.pack(
            FORM, p.key_id, p.trip, uuid.UUID(p.ticket_id).bytes, p.seat, p.from_place, p.to_place, p.version, p.valid_from_s, p.valid_to_s
        )
    except (struct.error, ValueError) as fault:
        raise Invalid(f"this cannot be a ticket: {fault}") from fault


def parse(text: str) -> tuple[Payload, bytes, bytes]:
    """(what it says, its 40 bytes, its proof) of a QR code's text; nothing is proved by this. Raises `Invalid`."""
    raw = unbase45(text) if len(text) <= TEXT_MAX else b""
    if len(raw) not in {PAYLOAD.size + size for size in PROOF_SIZE.values()} or raw[0] != FORM:
        raise Invalid("this is no ticket of ours")
    said, proof = raw[: PAYLOAD.size], raw[PAYLOAD.size :]
    _, key_id, trip, ticket, seat, from_place, to_place, version, valid_from_s, valid_to_s = PAYLOAD.unpack(said)
    return Payload(key_id, trip, str(uuid.UUID(bytes=ticket)), seat, from_place, to_place, version, valid_from_s, valid_to_s), said, proof


# ------------------------------------------------------------------------------------------------ keys


class PublicKey(msgspec.Struct, frozen=True, rename="camel"):
    """One row of the published keys. `public_key`: base64url without padding; of an HMAC key only a mark, there is nothing to publish."""

    key_id: int
    alg: str
    public_key: str
    created_at: str | None = None
    retired_at: str | None = None  # signs no more; what it has signed stays good


class TripSecret(msgspec.Struct, frozen=True, rename="camel"):
    """What a device needs for the HMAC tickets of one trip, and for no other."""

    key_id: int
    trip_id: str
    secret: str  # base64url without padding, 32 bytes


class KeyFile(msgspec.Struct, frozen=True, rename="camel"):
    """`GET /v1/tickets/keys`, and the file of `timepoint ticket verify --keys`."""

    keys: list[PublicKey]
    trip_secrets: list[TripSecret] = []


def text64(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def bytes64(text: str) -> bytes:
    """Raises ValueError."""
    return base64.b64decode(text + "=" * (-len(text) % 4), b"-_", validate=True)


class Keys:
    """What a verifier holds: public keys by id, secrets of trips for HMAC. The algorithm of an id is fixed here."""

    def __init__(self, file: KeyFile) -> None:
        self.alg: dict[int, str] = {}
        self._public: dict[int, Ed25519PublicKey] = {}
        self._secrets: dict[tuple[int, bytes], bytes] = {}
        try:
            for key in file.keys:
                if key.alg not in PROOF_SIZE:
                    raise ValueError(f"key {key.key_id}: no algorithm {key.alg!r}")
                self.alg[key.key_id] = key.alg
                if key.alg == ED25519:
                    self._public[key.key_id] = Ed25519PublicKey.from_public_bytes(bytes64(key.public_key))
            for one in file.trip_secrets:
                self._secrets[one.key_id, trip_digest(one.trip_id)] = bytes64(one.secret)
        except ValueError as fault:
            raise Invalid(f"the keys cannot be read: {fault}") from fault

    def secret(self, key_id: int, trip: bytes) -> bytes | None:
        """The HMAC secret of one trip, where this verifier has it."""
        return self._secrets.get((key_id, trip))

    def fault(self, payload: Payload, said: bytes, proof: bytes) -> str | None:
        """None: the proof holds. Else UNKNOWN_KEY or FORGED."""
        alg = self.alg.get(payload.key_id)
        if alg is None:
            return UNKNOWN_KEY
        if len(proof) != PROOF_SIZE[alg]:
            return FORGED
        if alg == ED25519:
            try:
                self._public[payload.key_id].verify(proof, said)
            except InvalidSignature:
                return FORGED
            return None
        secret = self.secret(payload.key_id, payload.trip)
        if secret is None:
            return UNKNOWN_KEY
        return None if hmac.compare_digest(hmac.digest(secret, said, "sha256"), proof) else FORGED


class SigningKeys(Keys):
    """The issuer's: every private half and every trip's secret follows from one secret and the key's id."""

    def __init__(self, secret_key: str, keys: Iterable[PublicKey]) -> None:
        listed = list(keys)
        super().__init__(KeyFile(listed))
        self._secret_key = secret_key
        self._private = {key.key_id: _private(secret_key, key.key_id) for key in listed if key.alg == ED25519}
        self._master = {key.key_id: _master(secret_key, key.key_id) for key in listed if key.alg == HMAC}
        # a key made under another SECRET_KEY still verifies and cannot sign
        self.ours = {key.key_id for key in listed if public_half(secret_key, key.key_id, key.alg) == bytes64(key.public_key)}

    def secret(self, key_id: int, trip: bytes) -> bytes | None:
        master = self._master.get(key_id)
        return None if master is None else hmac.digest(master, b"trip " + trip, "sha256")

    def sign(self, payload: Payload) -> str:
        """The text of the QR code. Raises `Invalid` where this issuer has no such key."""
        if payload.key_id not in self.ours:
            raise Invalid(f"ticket key {payload.key_id} cannot sign: it is unknown, or SECRET_KEY has changed")
        said = pack(payload)
        if self.alg[payload.key_id] == ED25519:
            return base45(said + self._private[payload.key_id].sign(said))
        secret = self.secret(payload.key_id, payload.trip)
        assert secret is not None
        return base45(said + hmac.digest(secret, said, "sha256"))


def public_half(secret_key: str, key_id: int, alg: str) -> bytes:
    """What is kept and published of a key. Of an HMAC key a mark: a digest from which nothing follows."""
    if alg == ED25519:
        return _private(secret_key, key_id).public_key().public_bytes_raw()
    if alg == HMAC:
        return hashlib.sha256(b"mark " + _master(secret_key, key_id)).digest()
    raise Invalid(f"TICKET_ALG: no algorithm {alg!r}; there are {ED25519}, {HMAC}")


def _derived(secret_key: str, what: str) -> bytes:
    return HKDF(hashes.SHA256(), 32, salt=None, info=f"timepoint ticket {what}".encode()).derive(secret_key.encode())


def _private(secret_key: str, key_id: int) -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(_derived(secret_key, f"ed25519 {key_id}"))


def _master(secret_key: str, key_id: int) -> bytes:
    return _derived(secret_key, f"hmac {key_id}")


# ------------------------------------------------------------------------------------------------ verifying


class Verdict(msgspec.Struct, frozen=True):
    """`payload` None: it could not be read. Of a FORGED ticket it is what the forger wrote."""

    result: str
    payload: Payload | None = None


Revocations = Mapping[str, int | None]  # ticket id -> the lowest version still good; None: none is


def verify(
    text: str,
    keys: Keys,
    now_s: int,
    *,
    trip_id: str | None = None,
    revocations: Revocations | None = None,
    issued: Collection[str] | Callable[[str], bool] | None = None,
) -> Verdict:
    """What the bytes, the clock and a list of revocations say of a ticket.

    `trip_id` None: any trip. `issued`: the ticket ids that the verifier knows (of a manifest, or a question to the issuer); with it a proof
    that does not hold is ALTERED where the ticket is one of them. Whether it is paid for and unused only its issuer knows.
    """
    try:
        payload, said, proof = parse(text)
    except Invalid:
        return Verdict(MALFORMED)
    fault = keys.fault(payload, said, proof)
    if fault == FORGED and issued is not None:
        known = issued(payload.ticket_id) if callable(issued) else payload.ticket_id in issued
        fault = ALTERED if known else FORGED
    if fault is not None:
        return Verdict(fault, payload)
    return Verdict(_standing(payload, now_s, trip_id, revocations or {}), payload)


def _standing(payload: Payload, now_s: int, trip_id: str | None, revocations: Revocations) -> str:
    if trip_id is not None and trip_digest(trip_id) != payload.trip:
        return WRONG_TRIP
    if payload.ticket_id in revocations:
        good_from = revocations[payload.ticket_id]
        if good_from is None:
            return REVOKED
        if payload.version < good_from:
            return SUPERSEDED
    if now_s < payload.valid_from_s:
        return NOT_YET_VALID
    return EXPIRED if now_s >= payload.valid_to_s else VALID


class Revoked(msgspec.Struct, frozen=True, rename="camel"):
    """One line of a list of revocations. `good_from_version` None: no version is good."""

    ticket_id: str
    good_from_version: int | None = None


def read_keys(raw: bytes) -> Keys:
    """Of the JSON of `GET /v1/tickets/keys` (or of a manifest's `ticketKeys`). Raises `Invalid`."""
    try:
        return Keys(msgspec.json.decode(raw, type=KeyFile))
    except msgspec.DecodeError as fault:
        raise Invalid(f"the keys cannot be read: {fault}") from fault


def read_revocations(raw: bytes) -> dict[str, int | None]:
    """Of a JSON list, or of a manifest with its `revoked`. Raises `Invalid`."""
    try:
        found: Any = msgspec.json.decode(raw)
        listed = msgspec.convert(found.get("revoked", []) if isinstance(found, dict) else found, list[Revoked])
    except msgspec.MsgspecError as fault:
        raise Invalid(f"the list of revocations cannot be read: {fault}") from fault
    return {one.ticket_id: one.good_from_version for one in listed}


# ------------------------------------------------------------------------------------------------ base45

_ALPHABET: Final = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ $%*+-./:"
_VALUE: Final = {letter: value for value, letter in enumerate(_ALPHABET)}


def base45(raw: bytes) -> str:
    """RFC 9285: two bytes are three characters, a last single byte two; least significant first."""
    out: list[str] = []
    for at in range(0, len(raw) - 1, 2):
        high, rest = divmod(raw[at] << 8 | raw[at + 1], 2025)
        middle, low = divmod(rest, 45)
        out += (_ALPHABET[low], _ALPHABET[middle], _ALPHABET[high])
    if len(raw) % 2:
        middle, low = divmod(raw[-1], 45)
        out += (_ALPHABET[low], _ALPHABET[middle])
    return "".join(out)


def unbase45(text: str) -> bytes:
    """Raises `Invalid` for a letter outside the alphabet, a length that no bytes have, a group past its bytes: each text has one meaning."""
    if len(text) % 3 == 1:
        raise Invalid("base45 has no text of this length")
    try:
        values = [_VALUE[letter] for letter in text]
    except KeyError as fault:
        raise Invalid(f"base45 has no letter {fault}") from fault
    whole = len(values) - len(values) % 3
    numbers = [
        low + 45 * middle + 2025 * high for low, middle, high in zip(values[0:whole:3], values[1:whole:3], values[2:whole:3], strict=True)
    ]
    last = values[whole] + 45 * values[whole + 1] if whole < len(values) else 0
    if last > 255 or (numbers and max(numbers) > 65_535):
        raise Invalid("a group of base45 is past its bytes")
    return struct.pack(f">{len(numbers)}H", *numbers) + (bytes([last]) if whole < len(values) else b"")
