-- Bookings: seats held, booked, confirmed and let go; what every change leaves behind it (audit row, outbox row, answer to its key).
--
-- Judge: the constraint seat_leg_sold_once. Every lock below only paces. Lock order everywhere: key, trip(s) by number, holder (advisory),
-- bookings by id, claims by seat. All functions are VOLATILE plpgsql: each statement takes a new snapshot ("lock, then read").
-- Names of errors: 40P01 and 40001 are to be run again with the same key; 55P03 is a wait past lock_timeout; TP409 a race lost.

create extension if not exists btree_gist;
create schema booking;

-- ------------------------------------------------------------------------------------------------ what every change leaves

-- The answer to a request that creates or charges, in the transaction of its effect. `key` is a digest of scope and key.
create table office.idempotency (
  key uuid primary key,
  partner_id text not null,
  fingerprint bytea not null,
  answer jsonb not null,          -- {"status": ...}; of a payment that is under way {"status": "IN_PROGRESS"}
  at timestamptz not null default clock_timestamp(),
  keep_until timestamptz not null default clock_timestamp() + interval '24 hours'
);
create index idempotency_keep on office.idempotency using brin (keep_until);

-- Who changed what. The application may write rows and never change or delete one.
create table office.audit (
  audit_id bigint generated always as identity primary key,
  partner_id text not null,
  actor text not null,            -- 'customer:ID', 'guest:ID', 'agent:ID', 'device:ID', 'system'
  request_id text not null,
  at timestamptz not null default clock_timestamp(),
  action text not null,           -- TOPIC.KIND of the event that went with it, or a word of its own
  entity_kind text not null,      -- the event's topic
  entity_id uuid not null,        -- and its aggregate
  diff jsonb
);
create index audit_entity on office.audit (entity_id);  -- reads of one partner go by the primary key: an index more costs every edge 60 us
revoke update, delete, truncate on office.audit from timepoint_app;

-- Events to be said, in (aggregate, version) order within a partition. A booking's go by its trip: what one trip's seats went through is said
-- in the order in which it became so. Delivered rows stay a while: they are what confirms are counted against.
create table office.outbox (
  part int2 not null,
  topic text not null,
  aggregate uuid not null,
  version int not null,
  partner_id text not null,
  kind text not null,
  body jsonb not null,
  at timestamptz not null default clock_timestamp(),
  delivered_at timestamptz,
  primary key (part, topic, aggregate, version)
);
create index outbox_waiting on office.outbox (part, at) where delivered_at is null;

-- Audit row and outbox row of one change that is no booking's.
create function office.record(p_partner text, p_actor text, p_request text, p_topic text, p_kind text, p_aggregate uuid, p_version int,
  p_body jsonb, p_diff jsonb default null) returns void language plpgsql volatile as $$
begin
  insert into office.audit (partner_id, actor, request_id, action, entity_kind, entity_id, diff)
    values (p_partner, p_actor, p_request, p_topic || '.' || p_kind, p_topic, p_aggregate, p_diff);
  insert into office.outbox (part, topic, aggregate, version, partner_id, kind, body)
    values (uuid_hash(p_aggregate) & 3, p_topic, p_aggregate, p_version, p_partner, p_kind, p_body);
end $$;

-- ------------------------------------------------------------------------------------------------ bookings and claims

-- Which state may follow which: the table of moves of engine/booking/booking.py (a test compares them).
create table booking.edge (from_state text not null, to_state text not null, primary key (from_state, to_state));
insert into booking.edge (from_state, to_state) values
  ('HELD', 'PENDING_PAYMENT'), ('HELD', 'RELEASED'), ('HELD', 'EXPIRED'), ('HELD', 'CONFIRMED'), ('HELD', 'CANCELLED'),
  ('PENDING_PAYMENT', 'CONFIRMED'), ('PENDING_PAYMENT', 'EXPIRED'), ('PENDING_PAYMENT', 'CANCELLED'), ('PENDING_PAYMENT', 'RELEASED'),
  ('CONFIRMED', 'CHECKED_IN'), ('CONFIRMED', 'BOARDED'), ('CONFIRMED', 'NO_SHOW'), ('CONFIRMED', 'CANCELLED'), ('CONFIRMED', 'EXCHANGED'),
  ('CHECKED_IN', 'BOARDED'), ('CHECKED_IN', 'NO_SHOW'), ('CHECKED_IN', 'CANCELLED'), ('CHECKED_IN', 'EXCHANGED'),
  ('BOARDED', 'COMPLETED'),
  ('CANCELLED', 'REFUNDED'), ('NO_SHOW', 'REFUNDED'), ('EXPIRED', 'REFUNDED');

-- One row for each trip instance of a booking: a return trip is two rows with one reference and one `lead_id` (the id of the first). A hold
-- is a row in state HELD. A row's `version` counts its moves.
create table booking.booking (
  booking_id uuid primary key,
  lead_id uuid not null,
  partner_id text not null,
  trip_no bigint not null,                   -- no foreign key: every hold of a hot trip would lock the one row it points at
  map_version int not null,
  seats int2[] not null,                     -- seat numbers, ascending
  prices bigint[] not null,                  -- of each seat, minor units of `currency`
  currency text not null,
  legs int4range not null,                   -- places of stops, half open
  holder text not null,                      -- whose limits it counts against: 'customer:ID', 'guest:...', 'agent:ID', 'device:ID'
  channel text not null default 'WEB' constraint booking_channel check (channel in ('WEB', 'AGENT', 'POS', 'LEASE', 'EXCHANGE', 'WAITLIST')),
  state text not null,
  version int not null,
  held_at timestamptz not null default clock_timestamp(),
  expires_at timestamptz not null,           -- what a hold or an unpaid booking lives to; without meaning afterwards
  paying bool not null default false,        -- a payment is in progress: never taken over, never swept
  reference text,                            -- six characters, unique everywhere (booking.reference)
  total bigint,                              -- of this row, with ancillaries and discounts; null: not booked yet
  quote jsonb,                               -- how the prices came about (engine/booking/fares.py)
  contact jsonb                              -- {"email", "phone"}; null: not booked yet
) with (fillfactor = 80);
create index booking_holder on booking.booking (holder, expires_at);       -- not partial: a change of state stays a HOT update
create index booking_lead on booking.booking (lead_id);
create index booking_trip on booking.booking (trip_no, expires_at);
create index booking_expiry on booking.booking (expires_at);

create table booking.reference (
  reference text primary key constraint reference_form check (reference ~ '^[2-9A-HJ-NP-Z]{6}$'),
  partner_id text not null,
  lead_id uuid not null,
  surnames text[] not null default '{}'      -- folded; what a look-up has to know besides
);
create index reference_lead on booking.reference (lead_id);
create index reference_partner on booking.reference (partner_id, lead_id);  -- an operator's bookings, newest first: ids rise with time

create table booking.seat_claim (
  booking_id uuid not null,
  map_version int not null,
  seat int2 not null,
  partner_id text not null,
  trip_no bigint not null,
  legs int4range not null constraint claim_legs check (not isempty(legs) and lower_inc(legs) and not upper_inc(legs)),
  state text not null constraint claim_state check (state in ('HELD', 'SOLD', 'MOVED')),  -- RELEASED: the row is deleted, the audit has it
  active bool not null generated always as (state in ('HELD', 'SOLD')) stored,            -- HELD -> SOLD touches no index: HOT
  primary key (booking_id, map_version, seat, legs),
  constraint seat_leg_sold_once exclude using gist (trip_no with =, map_version with =, seat with =, legs with &&) where (active)
) with (fillfactor = 80);

create table booking.passenger (
  booking_id uuid not null references booking.booking on delete cascade,
  seat int2 not null,
  partner_id text not null,
  first_name text not null,
  last_name text not null,
  type text not null,                        -- ADULT, CHILD, ... as the fare plan names them
  price bigint not null,
  detail jsonb,                              -- gender, document, needs: what the rules of seats and the operator ask for
  state text not null default 'BOOKED' constraint passenger_state check (state in ('BOOKED', 'CHECKED_IN', 'BOARDED', 'NO_SHOW', 'CANCELLED')),
  primary key (booking_id, seat)
);

-- Holds and releases leave dead index entries: clean often.
alter table booking.booking set (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000, autovacuum_vacuum_cost_delay = 0);
alter table booking.seat_claim set (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000, autovacuum_vacuum_cost_delay = 0);

select office.fence('office.idempotency'), office.fence('office.audit'), office.fence('office.outbox'), office.fence('booking.booking'),
  office.fence('booking.reference'), office.fence('booking.seat_claim'), office.fence('booking.passenger');

-- ------------------------------------------------------------------------------------------------ steps that the calls share

create function booking.lock_key(p_key uuid) returns void language plpgsql volatile as $$
begin
  perform pg_advisory_xact_lock(uuid_hash_extended(p_key, 0));
end $$;

-- Hold, book, confirm and release share a trip; a swap, a cancellation and a freeze of sales take it alone. Read the trip after this.
create function booking.lock_trip(p_trip bigint, p_alone bool default false) returns void language plpgsql volatile as $$
begin
  if p_alone then perform pg_advisory_xact_lock(1, hashint8(p_trip));
  else perform pg_advisory_xact_lock_shared(1, hashint8(p_trip)); end if;
end $$;

-- What is stored for a key: its answer with "replayed", KEY_REUSED where the body was another, or null. Takes the key's lock: a twin waits
-- here (2 s, then 55P03), not yet holding the trip, so that no swap waits for it.
create function booking.answered(p_key uuid, p_print bytea) returns jsonb language plpgsql volatile as $$
declare known record;
begin
  if p_key is null then return null; end if;
  perform booking.lock_key(p_key);
  select fingerprint, answer into known from office.idempotency where key = p_key;
  if not found then return null; end if;
  if known.fingerprint <> p_print then return '{"status":"REFUSED","code":"IDEMPOTENCY_KEY_REUSED"}'; end if;
  return known.answer || '{"replayed":true}';
end $$;

create function booking.keep_answer(p_key uuid, p_partner text, p_print bytea, p_answer jsonb) returns void language plpgsql volatile as $$
begin
  if p_key is not null then
    insert into office.idempotency (key, partner_id, fingerprint, answer) values (p_key, p_partner, p_print, p_answer);
  end if;
end $$;

-- Audit row and outbox row of some bookings as they now stand: one statement, so that no edge can forget one of them.
create function booking.note(p_ids uuid[], p_kind text, p_actor text, p_request text, p_more jsonb default '{}') returns void
language plpgsql volatile as $$
begin
  with b as materialized (select * from booking.booking where booking_id = any(p_ids)),
  a as (
    insert into office.audit (partner_id, actor, request_id, action, entity_kind, entity_id, diff)
    select partner_id, p_actor, p_request, 'booking.' || p_kind, 'booking', booking_id,
      jsonb_build_object('state', state, 'version', version) || p_more from b)
  insert into office.outbox (part, topic, aggregate, version, partner_id, kind, body)
  select hashint8(trip_no) & 3, 'booking', booking_id, version, partner_id, p_kind,
    jsonb_build_object('tripNo', trip_no, 'map', map_version, 'seats', seats, 'from', lower(legs), 'to', upper(legs), 'state', state,
      'ref', reference, 'until', case when state in ('HELD', 'PENDING_PAYMENT') then expires_at end) || p_more from b;
end $$;

-- One move of the table of moves, for bookings whose rows the caller has locked (`for update`, by id) after their trips. Claims follow:
-- SOLD once money is in, gone where the state no longer needs a seat. Refuses (TP422) a move that is not in the table, and (TP500) a
-- booking that should have its seats and has not.
create function booking.move(p_ids uuid[], p_to text, p_actor text, p_request text, p_kind text default null, p_more jsonb default '{}')
returns void language plpgsql volatile as $$
declare wrong record; n int; wanted int;
begin
  select b.booking_id, b.state into wrong from booking.booking b
    where b.booking_id = any(p_ids) and not exists (select from booking.edge e where e.from_state = b.state and e.to_state = p_to) limit 1;
  if found then raise exception 'WRONG_STATE' using errcode = 'TP422', detail = wrong.state, hint = wrong.booking_id::text; end if;
  update booking.booking set state = p_to, version = version + 1, paying = false where booking_id = any(p_ids);
  if p_to = 'CONFIRMED' then
    update booking.seat_claim set state = 'SOLD' where booking_id = any(p_ids) and state = 'HELD';  -- naming "active" invites the GiST index
    select count(*) into n from booking.seat_claim where booking_id = any(p_ids) and state = 'SOLD';
    select sum(cardinality(seats)) into wanted from booking.booking where booking_id = any(p_ids);
    if n <> wanted then raise exception 'CLAIMS_MISSING' using errcode = 'TP500', detail = p_ids::text; end if;
  elsif p_to in ('EXPIRED', 'RELEASED', 'CANCELLED', 'EXCHANGED', 'NO_SHOW', 'REFUNDED') then
    delete from booking.seat_claim where booking_id = any(p_ids) and state in ('HELD', 'SOLD');
  end if;
  perform booking.note(p_ids, coalesce(p_kind, p_to), p_actor, p_request, p_more);
end $$;

-- Holds and unpaid bookings past their time go as whole bookings, all rows of a lead or none, locked by id in order; one that was paid,
-- extended or released meanwhile, or whose payment is in progress, stays. So does one whose trip somebody has alone: a swap under way has
-- read its claims (a try, never a wait: the next second comes). Answers the ids that went.
create function booking.expire(p_ids uuid[], p_request text) returns uuid[] language plpgsql volatile as $$
declare v_leads uuid[]; gone uuid[];
begin
  select array_agg(lead_id) into v_leads from (
    select lead_id from (
      select distinct b.lead_id, b.trip_no from booking.booking b
      where b.lead_id in (select lead_id from booking.booking where booking_id = any(p_ids))) t
    group by lead_id having bool_and(pg_try_advisory_xact_lock_shared(1, hashint8(trip_no)))) l;
  if v_leads is null then return null; end if;
  perform from booking.booking where lead_id = any(v_leads) order by booking_id for update;
  select array_agg(booking_id) into gone from booking.booking b
    where lead_id = any(v_leads) and state in ('HELD', 'PENDING_PAYMENT') and not exists (
      select from booking.booking o where o.lead_id = b.lead_id and o.state in ('HELD', 'PENDING_PAYMENT')
        and (o.paying or o.expires_at > clock_timestamp()));
  if gone is null then return null; end if;
  perform booking.move(gone, 'EXPIRED', 'system', p_request);
  return gone;
end $$;

-- ------------------------------------------------------------------------------------------------ hold

-- All seats or none, one round trip. Answers {"status": "HELD", ...} or {"status": "REFUSED", "code", ...}; a race that is lost inside
-- raises TP409 with the seats in its detail, and everything rolls back. p_seats ascending, p_prices beside them. p_max_seats null: no limits.
create function booking.hold(p_partner text, p_key uuid, p_print bytea, p_booking uuid, p_trip bigint, p_map int, p_seats int2[], p_from int,
  p_to int, p_prices bigint[], p_currency text, p_quote jsonb, p_holder text, p_channel text, p_ttl interval, p_actor text, p_request text,
  p_max_seats int, p_max_holds int) returns jsonb language plpgsql volatile as $$
declare trip record; v_legs int4range; v_answer jsonb; v_taken int2[]; v_old uuid[]; v_got int2[]; v_holds int; v_held int; v_until timestamptz;
begin
  perform set_config('tp.partner', '*', true);      -- a key may have been used at another operator
  v_answer := booking.answered(p_key, p_print);
  if v_answer is not null then return v_answer; end if;
  perform set_config('tp.partner', p_partner, true), pg_advisory_xact_lock_shared(1, hashint8(p_trip));
  select i.map_version, i.status, i.sales_open, i.closes_at, i.stops, m.seats into trip
    from sale.trip_instance i join sale.seat_map m on m.trip_no = i.trip_no and m.map_version = i.map_version where i.trip_no = p_trip;
  if not found then return '{"status":"REFUSED","code":"TRIP_NOT_FOUND"}'; end if;
  if not trip.sales_open or trip.status <> 'SCHEDULED' or trip.closes_at <= clock_timestamp() then
    return jsonb_build_object('status', 'REFUSED', 'code', 'SALES_CLOSED', 'trip', trip.status); end if;
  if trip.map_version <> p_map then return '{"status":"REFUSED","code":"STALE_MAP"}'; end if;
  if p_from < 0 or p_to >= trip.stops or p_from >= p_to or p_seats = '{}' or not p_seats <@ trip.seats
     or cardinality(p_seats) <> cardinality(p_prices)
     or cardinality(p_seats) <> (select count(distinct u) from unnest(p_seats) u) then return '{"status":"REFUSED","code":"INVALID"}'; end if;
  v_legs := int4range(p_from, p_to);

  -- Look before writing: a refusal writes nothing (no transaction id, no flush), and the look finds what has to be taken over. The laterals
  -- with offset 0 leave one plan: seat, claim, booking (a plain join, planned on an empty table, began with booking: 5 x slower).
  select array_agg(distinct c.seat order by c.seat) filter (where not b.over), array_agg(distinct b.booking_id) filter (where b.over)
    into v_taken, v_old
    from unnest(p_seats) u,
      lateral (select seat, booking_id from booking.seat_claim
        where trip_no = p_trip and map_version = p_map and seat = u and active and legs && v_legs offset 0) c,
      lateral (select booking_id, state in ('HELD', 'PENDING_PAYMENT') and not paying and expires_at <= clock_timestamp() as over
        from booking.booking where booking_id = c.booking_id offset 0) b;
  if v_taken is not null then return jsonb_build_object('status', 'REFUSED', 'code', 'SEAT_TAKEN', 'seats', v_taken); end if;

  if p_max_seats is not null then
    perform pg_advisory_xact_lock(hashtextextended(p_holder, 2));
    select count(*), coalesce(sum(cardinality(seats)), 0) into v_holds, v_held from booking.booking
     where holder = p_holder and state in ('HELD', 'PENDING_PAYMENT') and expires_at > clock_timestamp();
    if v_holds >= p_max_holds or v_held + cardinality(p_seats) > p_max_seats then
      return jsonb_build_object('status', 'REFUSED', 'code', 'HOLD_LIMIT', 'holds', v_holds, 'held', v_held); end if;
  end if;
  if v_old is not null then perform booking.expire(v_old, p_request); end if;

  with c as (
    insert into booking.seat_claim (booking_id, map_version, seat, partner_id, trip_no, legs, state)
    select p_booking, p_map, u, p_partner, p_trip, v_legs, 'HELD' from unnest(p_seats) u order by u
    on conflict on constraint seat_leg_sold_once do nothing returning seat)
  select array_agg(seat) into v_got from c;
  if v_got is null or cardinality(v_got) < cardinality(p_seats) then
    raise exception 'SEAT_TAKEN' using errcode = 'TP409',
      detail = array(select unnest(p_seats) except select unnest(v_got) order by 1)::text;
  end if;

  v_until := clock_timestamp() + p_ttl;
  v_answer := jsonb_build_object('status', 'HELD', 'booking', p_booking, 'version', 1, 'tripNo', p_trip, 'map', p_map, 'seats', p_seats,
    'prices', p_prices, 'from', p_from, 'to', p_to, 'until', v_until);
  with b as (
    insert into booking.booking (booking_id, lead_id, partner_id, trip_no, map_version, seats, prices, currency, legs, holder, channel, state,
      version, expires_at, quote)
    values (p_booking, p_booking, p_partner, p_trip, p_map, p_seats, p_prices, p_currency, v_legs, p_holder, p_channel, 'HELD', 1, v_until, p_quote)),
  a as (
    insert into office.audit (partner_id, actor, request_id, action, entity_kind, entity_id, diff)
    values (p_partner, p_actor, p_request, 'booking.HELD', 'booking', p_booking, '{"state":"HELD","version":1}')),
  i as (
    insert into office.idempotency (key, partner_id, fingerprint, answer) select p_key, p_partner, p_print, v_answer where p_key is not null)
  insert into office.outbox (part, topic, aggregate, version, partner_id, kind, body)
  values (hashint8(p_trip) & 3, 'booking', p_booking, 1, p_partner, 'HELD', jsonb_build_object('tripNo', p_trip, 'map', p_map,
    'seats', p_seats, 'from', p_from, 'to', p_to, 'state', 'HELD', 'until', v_until));
  return v_answer;
end $$;

-- ------------------------------------------------------------------------------------------------ after the hold

-- The rows of a booking, its trips locked as `p_alone` says and its rows locked by id: the beginning of every edge but hold's.
-- Sets the tenant of the transaction to the booking's. p_id: the lead or any row of it. No rows: no such booking.
-- One booking a transaction: the trips of the next may have lower numbers.
create function booking.locked(p_id uuid, p_alone bool default false) returns setof booking.booking language plpgsql volatile as $$
declare v_partner text; v_trips bigint[]; v_lead uuid;
begin
  perform set_config('tp.partner', '*', true);
  select lead_id into v_lead from booking.booking where booking_id = p_id;
  select max(partner_id), array_agg(distinct trip_no order by trip_no) into v_partner, v_trips from booking.booking where lead_id = v_lead;
  if v_partner is null then return; end if;
  perform set_config('tp.partner', v_partner, true);
  for i in 1 .. cardinality(v_trips) loop perform booking.lock_trip(v_trips[i], p_alone); end loop;
  return query select * from booking.booking where lead_id = v_lead order by booking_id for update;
end $$;

-- DELETE of a hold: HELD or PENDING_PAYMENT (nothing paid, nothing in progress) -> RELEASED. Releasing what is released says so again.
create function booking.release(p_key uuid, p_print bytea, p_lead uuid, p_actor text, p_request text) returns jsonb
language plpgsql volatile as $$
declare b record; v_answer jsonb;
begin
  perform set_config('tp.partner', '*', true);
  v_answer := booking.answered(p_key, p_print);
  if v_answer is not null then return v_answer; end if;
  select min(state) as state, bool_or(state in ('HELD', 'PENDING_PAYMENT')) as unpaid, max(version) as version,
      array_agg(booking_id) filter (where state in ('HELD', 'PENDING_PAYMENT')) as ids, min(partner_id) as partner, bool_or(paying) as paying
    into b from booking.locked(p_lead);   -- a swap may have let a row of a lease go before
  if b.state is null then return '{"status":"REFUSED","code":"HOLD_NOT_FOUND"}'; end if;
  if b.paying then return '{"status":"REFUSED","code":"PAYMENT_IN_PROGRESS"}'; end if;
  if b.unpaid then
    perform booking.move(b.ids, 'RELEASED', p_actor, p_request);
    b.version := b.version + 1;
  elsif b.state not in ('RELEASED', 'EXPIRED') then
    return jsonb_build_object('status', 'REFUSED', 'code', 'WRONG_STATE', 'state', b.state);
  end if;
  v_answer := jsonb_build_object('status', 'RELEASED', 'booking', p_lead, 'version', b.version);
  perform booking.keep_answer(p_key, b.partner, p_print, v_answer);
  return v_answer;
end $$;

-- A hold's end moves to now + p_ttl, at most p_most after it began. Past its end it is over, also where nobody has taken the seats yet.
create function booking.extend(p_id uuid, p_ttl interval, p_most interval, p_actor text, p_request text) returns jsonb
language plpgsql volatile as $$
declare b record;
begin
  select * into b from booking.locked(p_id) where booking_id = p_id;
  if b.booking_id is null then return '{"status":"REFUSED","code":"HOLD_NOT_FOUND"}'; end if;
  if b.state <> 'HELD' then return jsonb_build_object('status', 'REFUSED', 'code', 'WRONG_STATE', 'state', b.state); end if;
  if b.expires_at <= clock_timestamp() then return '{"status":"REFUSED","code":"HOLD_EXPIRED"}'; end if;
  update booking.booking set expires_at = greatest(expires_at, least(clock_timestamp() + p_ttl, held_at + p_most)), version = version + 1
    where booking_id = p_id;
  perform booking.note(array[p_id], 'EXTENDED', p_actor, p_request);
  return jsonb_build_object('status', 'HELD', 'booking', p_id, 'version', b.version + 1);
end $$;

-- What is bought beside the seats (ancillaries, promo codes), inside the transaction of book(). Replaced where those tables are made.
create function booking.take_extras(p_ids uuid[], p_extras jsonb, p_actor text, p_request text) returns void language plpgsql volatile as $$
begin
  if p_extras is not null and p_extras <> '{}' then raise exception 'EXTRAS_NOT_SOLD' using errcode = 'TP422'; end if;
end $$;

-- HELD -> PENDING_PAYMENT: one or two holds become one booking under a reference. p_passengers: [{"booking", "seat", "first_name",
-- "last_name", "type", "price", "detail"}], one for each seat; p_totals beside p_ids, with all that is bought. Answers REFERENCE_TAKEN
-- where the reference is in use (nothing is written; the caller picks another).
create function booking.book(p_key uuid, p_print bytea, p_ids uuid[], p_reference text, p_passengers jsonb, p_contact jsonb, p_totals bigint[],
  p_extras jsonb, p_ttl interval, p_actor text, p_request text) returns jsonb language plpgsql volatile as $$
declare v_answer jsonb; v_partner text; v_trips bigint[]; v_wrong record; v_seats int; v_until timestamptz; v_found int; i int;
begin
  perform set_config('tp.partner', '*', true);
  v_answer := booking.answered(p_key, p_print);
  if v_answer is not null then return v_answer; end if;
  select min(partner_id), array_agg(distinct trip_no order by trip_no), count(*) into v_partner, v_trips, v_found
    from booking.booking where booking_id = any(p_ids);
  if v_found <> cardinality(p_ids) then return '{"status":"REFUSED","code":"HOLD_NOT_FOUND"}'; end if;
  perform set_config('tp.partner', v_partner, true);
  for i in 1 .. cardinality(v_trips) loop perform booking.lock_trip(v_trips[i]); end loop;
  perform from booking.booking where booking_id = any(p_ids) order by booking_id for update;
  select count(*), sum(cardinality(seats)) into v_found, v_seats from booking.booking where booking_id = any(p_ids);
  if v_found <> cardinality(p_ids) then return '{"status":"REFUSED","code":"HOLD_NOT_FOUND"}'; end if;   -- the two are of two operators
  select booking_id, state, expires_at <= clock_timestamp() as over into v_wrong from booking.booking
    where booking_id = any(p_ids) and (state <> 'HELD' or expires_at <= clock_timestamp()) limit 1;
  if found then
    return case when v_wrong.state = 'EXPIRED' or v_wrong.state = 'HELD' then '{"status":"REFUSED","code":"HOLD_EXPIRED"}'::jsonb
      else jsonb_build_object('status', 'REFUSED', 'code', 'HOLD_USED', 'state', v_wrong.state) end;
  end if;
  if v_seats <> jsonb_array_length(p_passengers) then return '{"status":"REFUSED","code":"INVALID"}'; end if;
  if exists (select booking_id, unnest(seats) from booking.booking where booking_id = any(p_ids)
      except select (p->>'booking')::uuid, (p->>'seat')::int2 from jsonb_array_elements(p_passengers) p) then
    return '{"status":"REFUSED","code":"STALE_MAP"}';      -- a swap has given the hold other seats since it was read
  end if;
  insert into booking.reference (reference, partner_id, lead_id, surnames)
    values (p_reference, v_partner, p_ids[1], array(select distinct p->>'folded' from jsonb_array_elements(p_passengers) p))
    on conflict do nothing;
  if not found then return '{"status":"REFUSED","code":"REFERENCE_TAKEN"}'; end if;
  insert into booking.passenger (booking_id, seat, partner_id, first_name, last_name, type, price, detail)
    select (p->>'booking')::uuid, (p->>'seat')::int2, v_partner, p->>'first_name', p->>'last_name', p->>'type', (p->>'price')::bigint, p->'detail'
    from jsonb_array_elements(p_passengers) p;
  select greatest(max(expires_at), clock_timestamp() + p_ttl) into v_until from booking.booking where booking_id = any(p_ids);
  update booking.booking b set lead_id = p_ids[1], reference = p_reference, contact = p_contact, total = t.total,
      expires_at = v_until,
      prices = array(select q.price from booking.passenger q where q.booking_id = b.booking_id order by q.seat)
    from unnest(p_ids, p_totals) t(id, total) where b.booking_id = any(p_ids) and b.booking_id = t.id;  -- the first alone makes it one probe
  perform booking.take_extras(p_ids, p_extras, p_actor, p_request);
  perform booking.move(p_ids, 'PENDING_PAYMENT', p_actor, p_request, 'CREATED');
  v_answer := jsonb_build_object('status', 'PENDING_PAYMENT', 'lead', p_ids[1], 'ref', p_reference, 'shown', booking.shown(p_reference, null));
  perform booking.keep_answer(p_key, v_partner, p_print, v_answer);
  return v_answer;
end $$;

-- A booking as people see it, by its reference or by the id of one of its rows; null: there is none.
create function booking.shown(p_reference text, p_id uuid) returns jsonb language plpgsql volatile as $$
declare v_lead uuid; v_answer jsonb;
begin
  perform set_config('tp.partner', '*', true);
  if p_reference is not null then select lead_id into v_lead from booking.reference where reference = p_reference;
  else select lead_id into v_lead from booking.booking where booking_id = p_id; end if;
  if v_lead is null then return null; end if;
  select jsonb_build_object('lead', v_lead, 'ref', min(reference), 'partner', min(b.partner_id), 'holder', min(holder), 'contact',
    (array_agg(contact))[1], 'rows', jsonb_agg(jsonb_build_object('id', booking_id, 'tripNo', trip_no, 'map', map_version, 'seats', seats,
      'prices', prices, 'currency', currency, 'from', lower(legs), 'to', upper(legs), 'state', state, 'version', version, 'total', total,
      'paying', paying, 'channel', channel, 'until', expires_at, 'heldAt', held_at, 'quote', quote, 'holder', holder,
      'over', state in ('HELD', 'PENDING_PAYMENT') and not paying and expires_at <= clock_timestamp(),
      'passengers', (select coalesce(jsonb_agg(jsonb_build_object('seat', p.seat, 'firstName', first_name, 'lastName', last_name, 'type', type,
        'price', price, 'state', p.state, 'detail', detail) order by p.seat), '[]') from booking.passenger p where p.booking_id = b.booking_id),
      'bought', case when total is not null then (select jsonb_agg(jsonb_build_object('seat', a.seat, 'code', code, 'name', name, 'count', count,
        'price', price) order by code, a.seat) from booking.ancillary a where a.booking_id = b.booking_id) end)  -- made in 0023
      order by booking_id <> v_lead, booking_id))
    into v_answer from booking.booking b where b.lead_id = v_lead;
  return v_answer;
end $$;
