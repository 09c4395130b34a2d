"""Tickets as bytes: what is signed is read back, and nothing else is."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.booking import tickets
from engine.booking.tickets import (
    ED25519,
    HMAC,
    KeyFile,
    Keys,
    Payload,
    PublicKey,
    SigningKeys,
    TripSecret,
    public_half,
    text64,
    trip_digest,
)
from engine.errors import Invalid

SECRET = "a-secret-of-the-tests-that-is-long-enough"
TRIP = "demo:C1-0800:20261121"
TICKET = "0195c0de-0001-7000-8000-000000000001"
NOW = 1_795_248_000


def key(key_id: int, alg: str = ED25519, secret: str = SECRET) -> PublicKey:
    return PublicKey(key_id, alg, text64(public_half(secret, key_id, alg)))


ISSUER = SigningKeys(SECRET, [key(1), key(2, HMAC), key(3)])
PUBLIC = Keys(KeyFile([key(1), key(2, HMAC), key(3)], [TripSecret(2, TRIP, text64(ISSUER.secret(2, trip_digest(TRIP)) or b""))]))


def payload(key_id: int = 1, **changed: object) -> Payload:
    facts: dict[str, object] = {
        "key_id": key_id, "trip": trip_digest(TRIP), "ticket_id": TICKET, "seat": 7, "from_place": 0, "to_place": 3, "version": 1,
        "valid_from_s": NOW - 60, "valid_to_s": NOW + 86_400,
    }  # fmt: skip
    return Payload(**(facts | changed))  # type: ignore[arg-type]


payloads = st.builds(
    Payload,
    key_id=st.sampled_from([1, 2, 3]),
    trip=st.binary(min_size=8, max_size=8),
    ticket_id=st.uuids().map(str),
    seat=st.integers(1, 65_535),
    from_place=st.integers(0, 255),
    to_place=st.integers(0, 255),
    version=st.integers(1, 255),
    valid_from_s=st.integers(0, 2**32 - 1),
    valid_to_s=st.integers(0, 2**32 - 1),
)


@given(st.binary(max_size=120))
def test_base45_reads_back_what_it_wrote(raw: bytes) -> None:
    assert tickets.unbase45(tickets.base45(raw)) == raw


@given(st.text(alphabet=tickets._ALPHABET, max_size=30))
def test_two_texts_of_base45_never_mean_the_same_bytes(text: str) -> None:
    try:
        raw = tickets.unbase45(text)
    except Invalid:
        return
    assert tickets.base45(raw) == text


@pytest.mark.parametrize(
    ("raw", "text"), [(b"AB", "BB8"), (b"Hello!!", "%69 VD92EX0"), (b"base-45", "UJCLQE7W581"), (b"ietf!", "QED8WEX0")]
)
def test_base45_is_that_of_the_rfc(raw: bytes, text: str) -> None:
    assert tickets.base45(raw) == text


@pytest.mark.parametrize("text", ["A", "ab8", "GGW", "::", "BB8A", "Ж78"])
def test_base45_refuses_what_no_bytes_have(text: str) -> None:
    with pytest.raises(Invalid):
        tickets.unbase45(text)


@settings(max_examples=60)
@given(payloads)
def test_a_signed_ticket_says_what_was_signed_and_its_text_fits_an_alphanumeric_qr(ticket: Payload) -> None:
    text = ISSUER.sign(ticket)
    read, said, proof = tickets.parse(text)
    assert read == ticket
    assert len(said) == 40
    assert len(proof) == tickets.PROOF_SIZE[ISSUER.alg[ticket.key_id]]
    assert len(text) == (156 if len(proof) == 64 else 108)
    assert ISSUER.sign(ticket) == text, "nothing has to be kept: signing again makes the same bytes"
    assert set(text) <= set(tickets._ALPHABET)


@pytest.mark.parametrize("key_id", [1, 2])
def test_a_ticket_altered_in_any_byte_is_refused(key_id: int) -> None:
    raw = tickets.unbase45(ISSUER.sign(payload(key_id)))
    for at in range(len(raw)):
        for bit in range(8):
            bad = bytes(byte ^ (1 << bit if i == at else 0) for i, byte in enumerate(raw))
            text = tickets.base45(bad)
            assert tickets.verify(text, PUBLIC, NOW).result in {"MALFORMED", "UNKNOWN_KEY", "FORGED"}, (at, bit)
            said = tickets.verify(text, PUBLIC, NOW, issued={TICKET}).result
            expected = "MALFORMED" if at == 0 else "UNKNOWN_KEY" if said == "UNKNOWN_KEY" else "FORGED" if 11 <= at < 27 else "ALTERED"
            assert said == expected, (at, bit)


@settings(max_examples=150)
@given(st.sampled_from([1, 2]), st.integers(0, 155), st.sampled_from(tickets._ALPHABET))
def test_a_ticket_altered_in_any_letter_is_refused(key_id: int, at: int, letter: str) -> None:
    text = ISSUER.sign(payload(key_id))
    at %= len(text)
    if text[at] == letter:
        return
    assert tickets.verify(text[:at] + letter + text[at + 1 :], PUBLIC, NOW).result != "VALID"


@given(st.text(max_size=200))
def test_no_text_breaks_the_verifier(text: str) -> None:
    assert tickets.verify(text, PUBLIC, NOW).result == "MALFORMED"


@given(st.binary(min_size=72, max_size=104))
def test_chance_is_no_ticket(raw: bytes) -> None:
    assert tickets.verify(tickets.base45(raw), PUBLIC, NOW).result in {"MALFORMED", "UNKNOWN_KEY", "FORGED"}


def test_each_fault_has_its_own_code() -> None:
    good = ISSUER.sign(payload())
    stranger = SigningKeys("another-secret-that-is-long-enough-too", [key(1, secret="another-secret-that-is-long-enough-too")])
    assert tickets.verify(good, PUBLIC, NOW, trip_id=TRIP).result == "VALID"
    assert tickets.verify("HELLO", PUBLIC, NOW).result == "MALFORMED"
    assert tickets.verify(stranger.sign(payload()), PUBLIC, NOW).result == "FORGED"
    assert tickets.verify(good, Keys(KeyFile([key(3)])), NOW).result == "UNKNOWN_KEY"
    assert tickets.verify(good, PUBLIC, NOW, trip_id="demo:C1-0800:20261122").result == "WRONG_TRIP"
    assert tickets.verify(good, PUBLIC, NOW - 61).result == "NOT_YET_VALID"
    assert tickets.verify(good, PUBLIC, NOW + 86_399).result == "VALID"
    assert tickets.verify(good, PUBLIC, NOW + 86_400).result == "EXPIRED"
    assert tickets.verify(good, PUBLIC, NOW, revocations={TICKET: None}).result == "REVOKED"
    assert tickets.verify(good, PUBLIC, NOW, revocations={TICKET: 2}).result == "SUPERSEDED"
    assert tickets.verify(ISSUER.sign(payload(version=2)), PUBLIC, NOW, revocations={TICKET: 2}).result == "VALID"


def test_the_algorithm_is_the_keys_and_never_the_tickets() -> None:
    """The classic confusion: a MAC made with the public key as its secret, under the id of an Ed25519 key."""
    import hmac

    said = tickets.pack(payload(1))
    public = tickets.bytes64(key(1).public_key)
    assert tickets.verify(tickets.base45(said + hmac.digest(public, said, "sha256")), PUBLIC, NOW).result == "FORGED"
    _, said2, _ = tickets.parse(ISSUER.sign(payload(2)))
    _, _, signature = tickets.parse(ISSUER.sign(payload(1)))
    assert tickets.verify(tickets.base45(said2 + signature), PUBLIC, NOW).result == "FORGED"


def test_a_device_with_the_secret_of_one_trip_can_verify_no_other() -> None:
    other = ISSUER.sign(payload(2, trip=trip_digest("demo:C1-0900:20261121")))
    assert tickets.verify(ISSUER.sign(payload(2)), PUBLIC, NOW).result == "VALID"
    assert tickets.verify(other, PUBLIC, NOW).result == "UNKNOWN_KEY"
    assert tickets.verify(other, ISSUER, NOW).result == "VALID"


def test_a_key_made_under_another_secret_still_verifies_and_cannot_sign() -> None:
    moved = SigningKeys("the-secret-after-it-was-changed-by-someone", [key(1)])
    assert tickets.verify(ISSUER.sign(payload()), moved, NOW).result == "VALID"
    with pytest.raises(Invalid, match="SECRET_KEY has changed"):
        moved.sign(payload())


def test_what_has_no_room_is_not_signed() -> None:
    for wrong in ({"seat": 70_000}, {"version": 256}, {"valid_to_s": 2**32}, {"ticket_id": "x"}):
        with pytest.raises(Invalid):
            ISSUER.sign(payload(**wrong))


def test_lists_of_revocations_and_keys_are_read_from_files() -> None:
    assert tickets.read_revocations(b'[{"ticketId":"a"},{"ticketId":"b","goodFromVersion":3}]') == {"a": None, "b": 3}
    assert tickets.read_revocations(b'{"revoked":[{"ticketId":"a"}],"passengers":[]}') == {"a": None}
    for bad in (b"{", b'[{"x":1}]', b"3"):
        with pytest.raises(Invalid):
            tickets.read_revocations(bad)
    for bad in (
        b"{",
        b"[]",
        b'{"keys":[{"keyId":1,"alg":"none","publicKey":""}]}',
        b'{"keys":[{"keyId":1,"alg":"ed25519","publicKey":"AA"}]}',
    ):
        with pytest.raises(Invalid):
            tickets.read_keys(bad)


def test_the_vectors_of_the_docs_are_true() -> None:
    text = (Path(__file__).resolve().parent.parent / "docs/tickets.md").read_text(encoding="utf-8")
    vectors = json.loads(re.findall(r"```json\n(.*?)```", text, re.S)[-1])
    issuer = SigningKeys(vectors["secretKey"], [key(one["keyId"], one["alg"], vectors["secretKey"]) for one in vectors["tickets"]])
    for one in vectors["tickets"]:
        said = one["payload"]
        made = Payload(
            key_id=one["keyId"], trip=trip_digest(said["tripId"]), ticket_id=said["ticketId"], seat=said["seat"],
            from_place=said["from"], to_place=said["to"], version=said["version"], valid_from_s=said["validFromS"], valid_to_s=said["validToS"],
        )  # fmt: skip
        assert tickets.pack(made).hex() == one["payloadHex"]
        assert issuer.sign(made) == one["qr"]
        assert public_half(vectors["secretKey"], one["keyId"], one["alg"]).hex() == one["publicKeyHex"]
