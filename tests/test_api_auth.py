"""Access tokens: what holds, what does not, and who may do what."""

from __future__ import annotations

import jwt
import pytest

from api import auth
from engine.clock import ManualClock
from engine.errors import Forbidden, Invalid, Unauthenticated
from engine.settings import Settings

KEY = "k" * 40


@pytest.fixture
def tokens() -> auth.Tokens:
    return auth.Tokens(Settings(secret_key=KEY), ManualClock(1_700_000_000_000))


def test_a_minted_token_names_its_principal_until_it_is_over() -> None:
    clock = ManualClock(1_700_000_000_000)
    tokens = auth.Tokens(Settings(secret_key=KEY), clock)
    token = tokens.mint("ada", auth.PARTNER_ADMIN, partner_id="demo", life_s=60)
    assert tokens.principal(token).partner_id == "demo"
    clock.advance(60_000)
    with pytest.raises(Unauthenticated, match="over"):
        tokens.principal(token)


def test_a_token_of_another_key_of_no_signature_or_of_another_audience_is_refused(tokens: auth.Tokens) -> None:
    good = {"iss": auth.ISSUER, "aud": auth.AUDIENCE, "typ": "access", "sub": "x", "roles": [auth.SUPER_ADMIN], "exp": 1_800_000_000}
    assert tokens.principal(jwt.encode(good, KEY, algorithm="HS256")).role == auth.SUPER_ADMIN
    for bad in (
        jwt.encode(good, "z" * 40, algorithm="HS256"),
        jwt.encode(good, "", algorithm="none"),
        jwt.encode(good | {"aud": "elsewhere"}, KEY, algorithm="HS256"),
        jwt.encode(good | {"typ": "refresh"}, KEY, algorithm="HS256"),
        jwt.encode(good | {"roles": ["ROOT"]}, KEY, algorithm="HS256"),
        jwt.encode(good | {"roles": []}, KEY, algorithm="HS256"),
        "not-a-token",
        "",
    ):
        with pytest.raises(Unauthenticated):
            tokens.principal(bad)


def test_start_up_refuses_a_missing_short_or_demo_key_outside_demo_mode() -> None:
    for key in ("", "short", auth.DEMO_KEY):
        with pytest.raises(Invalid, match="SECRET_KEY"):
            auth.Tokens(Settings(secret_key=key), ManualClock())
    auth.Tokens(Settings(demo=True), ManualClock())


def test_roles_are_refused_by_default(tokens: auth.Tokens) -> None:
    with pytest.raises(Unauthenticated):
        auth.need(None, auth.SUPER_ADMIN)
    customer = tokens.principal(tokens.mint("c", auth.CUSTOMER))
    with pytest.raises(Forbidden):
        auth.need(customer, auth.PARTNER_ADMIN, auth.SUPER_ADMIN)


def test_private_channels_ask_for_the_partners_role(tokens: auth.Tokens) -> None:
    own = tokens.principal(tokens.mint("a", auth.PARTNER_ADMIN, partner_id="demo"))
    customer = tokens.principal(tokens.mint("c", auth.CUSTOMER))
    assert auth.may_listen(None, "bus:1")
    assert auth.may_listen(own, "fleet:demo")
    assert not auth.may_listen(own, "fleet:other")
    assert not auth.may_listen(customer, "incidents:demo")
    assert not auth.may_listen(None, "fleet:demo")
    assert not auth.may_listen(own, "unheard-of:1")


def test_an_authorization_header_of_another_kind_is_refused_and_none_is_nobody(tokens: auth.Tokens) -> None:
    assert tokens.from_header(None) is None
    for header in ("Basic YTpi", "Bearer", "Bearer "):
        with pytest.raises(Unauthenticated):
            tokens.from_header(header)
