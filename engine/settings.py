"""Every setting of the product, with unit, default and reason, read from the environment once.

A field's environment name is its name in capitals (`hold_ttl_s` -> `HOLD_TTL_S`); `timepoint settings` and docs/settings.md are made from
this struct. All bad variables are named at once, then start-up refuses.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, get_args, get_type_hints

import msgspec
from msgspec import Meta

from engine.errors import Invalid


def _d(text: str, **limits: Any) -> Meta:
    return Meta(description=text, **limits)


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """All of them. Units stand last in the name."""

    # where things are
    host: Annotated[str, _d("address the engine listens on; loopback unless a gateway stands in front")] = "127.0.0.1"
    port: Annotated[int, _d("port the engine listens on", ge=0, le=65535)] = 8787
    database_url: Annotated[str, _d("PostgreSQL DSN of the application role")] = "postgresql:///timepoint"
    database_owner_url: Annotated[str, _d("PostgreSQL DSN of the owner role (migrations); empty: database_url")] = ""
    redis_url: Annotated[str, _d("Redis URL, redis:// or unix://; several nodes of a cluster, comma separated")] = (
        "redis://127.0.0.1:6379/0"
    )
    redis_cluster: Annotated[bool, _d("REDIS_URL is a node of a Redis Cluster, even if only one is named")] = False
    mqtt_url: Annotated[str, _d("MQTT broker URL, mqtt:// or mqtt+unix://; empty: no MQTT")] = ""
    demo: Annotated[bool, _d("demo mode: accepts the demo's secrets, wide rate limits")] = False
    secret_key: Annotated[str, _d("signs access tokens; at least 32 characters; start-up refuses the empty one outside demo mode")] = ""
    roles: Annotated[str, _d("which parts this process runs: any of api,track,history,mqtt,office, comma separated")] = (
        "api,track,history,mqtt,office"
    )

    # ingest
    ingest_body_max_bytes: Annotated[int, _d("largest ingest body; over it 413", ge=1024)] = 1_048_576
    ingest_fixes_max: Annotated[int, _d("most fixes in one request; over it 413", ge=1)] = 10_000
    ingest_body_timeout_s: Annotated[float, _d("a body must have arrived whole by then, else 408: slow-loris", gt=0)] = 10.0
    ingest_queue_max: Annotated[int, _d("fixes waiting for one area's XADD before the door answers 503", ge=1)] = 50_000
    ingest_answer_timeout_s: Annotated[float, _d("longest wait of a device for its XADD; then 503", gt=0)] = 5.0
    ingest_stream_max_bytes: Annotated[int, _d("byte cap of an area's ingest stream; past it 503 with Retry-After", ge=1)] = 268_435_456
    ingest_gather_max_ms: Annotated[int, _d("pause between two XADDs of an area under load: CPU for age", ge=0)] = 5
    ingest_inflated_max_bytes: Annotated[int, _d("largest gzip body once inflated; over it 413: bombs", ge=1024)] = 4_194_304
    mqtt_broker_dir: Annotated[
        str, _d("folder of Mosquitto's passwords, acl and server.pid, kept by the engine; empty: not ours to keep")
    ] = ""
    ingest_device_rate: Annotated[float, _d("fixes a second one device may send for each of its buses, per worker; over it 429", gt=0)] = (
        200.0
    )
    ingest_device_burst: Annotated[int, _d("fixes a device may send at once beyond its rate: a day's backlog at 4 s", ge=1)] = 20_000
    realtime_sources: Annotated[
        str, _d("JSON file of GTFS-Realtime feeds of other systems whose vehicles are taken as fixes (docs/feeds.md); empty: none")
    ] = ""
    hmac_window_s: Annotated[int, _d("HMAC replay window, either side of now", ge=1)] = 300

    # tracking shell
    lease_ms: Annotated[int, _d("life of an area's lease: what a takeover waits for", ge=500)] = 3_000
    lease_renew_ms: Annotated[int, _d("how often an owner renews; a quarter of the lease leaves three chances", ge=100)] = 750
    batch_fixes_max: Annotated[int, _d("most fixes folded between two commits: bounds the Lua call", ge=1)] = 300
    gather_max_ms: Annotated[int, _d("longest pause after a commit under load: CPU for age", ge=0)] = 20
    out_stream_max_bytes: Annotated[int, _d("byte cap of an area's out stream (history behind); past it the door answers 503", ge=1)] = (
        536_870_912
    )

    # history
    history_back_days: Annotated[
        int, _d("fixes older than this are quarantined instead of kept: a phone's clock that stood", ge=1, le=60)
    ] = 3
    history_keep_days: Annotated[int, _d("days that fixes and events are kept", ge=1)] = 90
    forecast_keep_days: Annotated[
        int,
        _d("days that published arrivals are kept, one sample a vehicle and minute: what their accuracy is worked out from", ge=3, le=60),
    ] = 8
    accuracy_keep_days: Annotated[int, _d("days that the accuracy of published arrivals is kept, by route", ge=8)] = 730
    history_batch_max: Annotated[int, _d("most fixes of one history transaction", ge=1)] = 5_000
    history_gather_ms: Annotated[int, _d("pause of the history writer when it has caught up: larger batches for age", ge=0)] = 250

    summaries_s: Annotated[float, _d("pause between two passes that keep the managers' summaries as new as the record", gt=0)] = 300.0
    summaries_keep_days: Annotated[int, _d("days that the managers' summaries are kept", ge=8)] = 400
    repair_quiet_s: Annotated[
        float, _d("history's stops are made again this long after the last late fix of a bus: a backlog comes in pieces", gt=0)
    ] = 10.0

    # live
    socket_max: Annotated[int, _d("most WebSocket connections of one worker; over it 4429", ge=1)] = 20_000
    socket_subscriptions_max: Annotated[int, _d("most channels of one socket; over it TOO_MANY_CHANNELS", ge=1)] = 200
    socket_buffer_max_bytes: Annotated[int, _d("unsent bytes: past them a stream gets the newest only, a device is not read", ge=1024)] = (
        65_536
    )
    socket_kernel_buffer_bytes: Annotated[
        int, _d("send buffer of a live socket in the kernel (which doubles it): newest wins only behind it", ge=4096)
    ] = 49_152
    socket_stall_s: Annotated[float, _d("how long a socket may read nothing before it is closed with 4408", gt=0)] = 30.0
    socket_messages_max: Annotated[int, _d("most messages a client may send in 10 s; over it 4429", ge=10)] = 600
    socket_message_max_bytes: Annotated[int, _d("largest message of a client; over it 1009", ge=256)] = 16_384
    socket_auth_s: Annotated[float, _d("a private path must have seen a token by then, else 4401", gt=0)] = 10.0
    socket_origins: Annotated[
        str, _d("origins of web pages that may open sockets, comma separated; *: any (public data, token never a cookie)")
    ] = "*"
    live_gather_ms: Annotated[
        int, _d("who follows many vehicles (route, stop, fleet, viewport) is told once in so long: writes for age", ge=0, le=1000)
    ] = 100
    bbox_span_max_deg: Annotated[float, _d("widest and highest viewport, degrees: bounds a snapshot", gt=0, le=360)] = 10.0
    bbox_changes_max: Annotated[int, _d("most viewport changes of a socket in 10 s", ge=1)] = 60
    socket_ping_s: Annotated[float, _d("server ping interval", gt=0)] = 25.0
    drain_s: Annotated[float, _d("length of a drain: sockets are closed in waves over it", ge=0)] = 10.0

    # booking
    pick_ttl_s: Annotated[int, _d("how long a pick lasts", ge=1, le=3_600)] = 90
    pick_seats_max: Annotated[int, _d("most seats of one pick call", ge=1, le=60)] = 10
    hold_ttl_s: Annotated[int, _d("how long a hold lasts", ge=1, le=86_400)] = 600
    hold_most_s: Annotated[int, _d("longest life of a hold, extensions counted", ge=1, le=86_400)] = 1_800
    guest_seats_max: Annotated[int, _d("most seats a guest or customer may hold at a time", ge=1)] = 6
    guest_holds_max: Annotated[int, _d("most holds of a guest or customer at a time", ge=1)] = 3
    address_holds_burst: Annotated[
        int, _d("holds that guests of one address may ask for at once, refilled one each 2 s; over it 429 (demo mode counts none)", ge=1)
    ] = 30
    sales_pass_s: Annotated[float, _d("pause between two passes of the opener, which puts trips on sale", gt=0)] = 30.0
    trip_over_s: Annotated[int, _d("a trip that nobody ended is over so long after its planned arrival", ge=0)] = 3_600
    sold_trips_max: Annotated[int, _d("trip instances on sale that a worker keeps in memory", ge=10)] = 4_000

    # payments
    payment_providers: Annotated[str, _d("who takes money, comma separated: SIMULATED_CARD, SIMULATED_MOBILE_MONEY")] = (
        "SIMULATED_CARD,SIMULATED_MOBILE_MONEY"
    )
    payment_webhook_secrets: Annotated[
        str, _d("secrets of webhooks, PROVIDER=secret, comma separated; a simulated provider without one: derived from secret_key")
    ] = ""
    payment_limit_s: Annotated[int, _d("how long a payment may take: the booking is kept that long once one has begun", ge=10)] = 900
    payment_run_s: Annotated[float, _d("a request about a payment that has not ended by then has died: others go on with it", gt=0)] = 15.0
    payment_provider_timeout_s: Annotated[float, _d("longest wait for a provider's answer", gt=0)] = 5.0
    payment_reconcile_s: Annotated[float, _d("how often payments and refunds that were left are looked for", gt=0)] = 1.0
    late_payment_offer_s: Annotated[
        int, _d("how long a customer whose money came too late may choose other seats, before it goes back", ge=1)
    ] = 21_600
    refund_tries_max: Annotated[int, _d("tries of a refund, ever further apart, before people have to look", ge=1)] = 12
    simulator_answer_ms: Annotated[int, _d("how long the simulated wallet's customer takes to agree", ge=0)] = 1_000

    # office
    outbox_poll_ms: Annotated[int, _d("how often the relay looks for events by itself; the bell usually wakes it at once", ge=10)] = 200
    outbox_batch_max: Annotated[int, _d("most events that the relay reads at once", ge=1)] = 500
    outbox_tries_max: Annotated[int, _d("an event that is refused this often is a dead letter and holds back its aggregate", ge=1)] = 5
    outbox_keep_days: Annotated[int, _d("days that said events are kept: what confirms are counted against", ge=1)] = 7
    inbox_keep_days: Annotated[int, _d("days that consumers remember what they did: longer than an event can come again", ge=1)] = 14
    notice_max_age_s: Annotated[
        int, _d("passengers are not told of what happened longer ago: after a fault of ours it is no news", ge=60)
    ] = 900
    events_stream_max: Annotated[int, _d("events that the Redis stream keeps for consumers, about", ge=1000)] = 100_000
    expiry_s: Annotated[float, _d("how often holds and unpaid bookings past their time are swept", gt=0)] = 1.0

    # tickets and boarding
    ticket_alg: Annotated[
        str, _d("what new ticket keys sign with: ed25519, or hmac (small devices; verifying needs the trip's secret)")
    ] = "ed25519"
    check_in_open_s: Annotated[int, _d("check-in opens this long before a passenger's departure", ge=0)] = 172_800
    no_show_after_s: Annotated[
        int, _d("a passenger is given up this long after the planned departure from their stop: buses are late too", ge=0)
    ] = 7_200
    completed_after_s: Annotated[int, _d("a boarded booking is done this long after its planned arrival", ge=0)] = 3_600

    # counters without a network, waiting for seats
    pos_lease_s: Annotated[int, _d("how long a device's block of seats lasts unless it asks for less", ge=60, le=604_800)] = 14_400
    pos_lease_most_s: Annotated[int, _d("longest life of a block of seats, extensions counted", ge=60, le=604_800)] = 86_400
    waitlist_offer_s: Annotated[int, _d("how long freed seats are held for who waits; then the next are asked", ge=10, le=86_400)] = 900
    waitlist_poll_s: Annotated[float, _d("how often who waits is looked for besides the events that free seats", gt=0)] = 5.0
    rush_threshold_per_s: Annotated[float, _d("holds a second tried on one trip that open its waiting room; 0: never by itself", ge=0)] = (
        5_000.0
    )
    rush_admit_per_s: Annotated[float, _d("people a second let out of a trip's waiting room unless its operator says otherwise", gt=0)] = (
        20.0
    )
    rush_calm_s: Annotated[int, _d("a waiting room that opened by itself closes after so long below the threshold", ge=1)] = 30
    rush_pass_s: Annotated[int, _d("how long who was let out of the waiting room may hold seats", ge=10)] = 300

    # database
    database_pool_max: Annotated[int, _d("connections of one worker's asyncpg pool", ge=1)] = 8
    desk_pool_max: Annotated[int, _d("connections of one worker's pool for the booking desk", ge=1)] = 12
    statement_timeout_ms: Annotated[int, _d("longest statement of the application role", ge=100)] = 10_000


_TRUE, _FALSE = {"1", "true", "yes", "on"}, {"0", "false", "no", "off", ""}


def load(environ: Mapping[str, str]) -> Settings:
    """Settings from environment variables. Raises `Invalid` that names every bad variable, its value's fault and its unit."""
    found: dict[str, Any] = {}
    faults: list[dict[str, str]] = []
    for name, hint in get_type_hints(Settings, include_extras=True).items():
        raw = environ.get(name.upper())
        if raw is None:
            continue
        kind = get_args(hint)[0]
        try:
            value: Any = raw
            if kind is bool:
                low = raw.strip().lower()
                if low not in _TRUE | _FALSE:
                    raise ValueError("neither true nor false")
                value = low in _TRUE
            found[name] = msgspec.convert(value, hint, strict=False)
        except (ValueError, msgspec.ValidationError) as fault:
            faults.append({"pointer": name.upper(), "code": "BAD_SETTING", "detail": str(fault)})
    if faults:
        listed = "; ".join(f"{f['pointer']}: {f['detail']}" for f in faults)
        raise Invalid(f"bad settings: {listed}", errors=faults)
    return Settings(**found)


def describe() -> list[tuple[str, str, str, str]]:
    """(environment name, type, default, reason) of every setting, for `timepoint settings` and docs/settings.md."""
    rows = []
    for field in msgspec.structs.fields(Settings):
        hint = field.type
        kind, meta = get_args(hint)[0], get_args(hint)[1]
        rows.append((field.name.upper(), kind.__name__, repr(field.default), meta.description or ""))
    return rows
