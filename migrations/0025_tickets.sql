-- Tickets and boarding: which seat of which booking has a ticket in force, with which key it is signed, and what scanners saw.
--
-- A ticket is issued in the transaction that confirms its booking and is signed when it is read (engine/booking/tickets.py): its bytes follow
-- from its row and from a key that no table keeps. A ticket belongs to a passenger, not to a place on a map: a bus swap moves `seat`, and
-- the bytes in the passenger's pocket (with `printed_seat`) stay good. The functions ask for the rows of the bookings to be locked.

create schema ticket;

-- Public halves only: the private ones are derived from SECRET_KEY and the key's id. A key signs until it is retired and verifies for ever.
create table ticket.key (
  key_id smallint primary key constraint key_id_form check (key_id between 1 and 32767),
  alg text not null constraint key_alg check (alg in ('ed25519', 'hmac')),
  public_key bytea not null,                 -- ed25519: 32 bytes; hmac: a digest that tells whether SECRET_KEY is still the one it came from
  created_at timestamptz not null default clock_timestamp(),
  retired_at timestamptz
);

create table ticket.ticket (
  ticket_id uuid primary key default gen_random_uuid(),
  booking_id uuid not null references booking.booking on delete cascade,
  seat int2 not null,                        -- where its passenger sits now
  printed_seat int2 not null,                -- what the QR says: a hint
  partner_id text not null,
  trip_no bigint not null,                   -- its booking's; that row has the reference, and so each confirmation one check less
  legs int4range not null,
  version int2 not null default 1 constraint ticket_version check (version between 1 and 255),  -- a QR of an older one is SUPERSEDED
  key_id smallint,                           -- null: nobody has read it yet, and there was no key when it was issued
  state text not null default 'ISSUED' constraint ticket_state check (state in ('ISSUED', 'USED', 'REVOKED')),
  valid_from timestamptz not null,           -- whole seconds
  valid_to timestamptz not null,
  revoked_at timestamptz,                    -- of this version; null: in force
  boarded_at timestamptz,                    -- by the scan that won, corrected
  boarded_by text,                           -- its device
  events int not null default 1              -- of its outbox
);
create unique index ticket_of_a_seat on ticket.ticket (booking_id, seat) where state <> 'REVOKED';  -- one in force for a seat
create index ticket_booking on ticket.ticket (booking_id);

-- What scanners saw, one row for each (device, seq); `result` is what the fold over all scans of a ticket says now.
create table ticket.scan (
  scan_id uuid primary key,
  partner_id text not null,
  device text not null,
  seq bigint,                                -- the device's own number; null: scanned online by a device that keeps none
  ticket_id uuid references ticket.ticket on delete cascade,  -- null: no ticket of ours
  trip_no bigint,
  version int2,                              -- of the ticket, as the QR says
  digest bytea not null,                     -- SHA-256 of the QR text: the same (device, seq) with another one is refused
  at timestamptz not null,                   -- the device's time corrected by its offset
  received_at timestamptz not null,
  offline bool not null,
  verdict text not null,                     -- what the bytes and the clock say: VALID, FORGED, EXPIRED, ...
  result text not null,
  first_result text not null,                -- what its device was told
  actor text not null,
  constraint scan_once unique (partner_id, device, seq)
);
create index scan_ticket on ticket.scan (ticket_id);
create index scan_trip on ticket.scan (trip_no, at);

select office.fence('ticket.ticket'), office.fence('ticket.scan');

-- Audit row and outbox row of tickets as they now stand: one statement, as booking.note, for it is part of every confirmation.
create function ticket.note(p_ids uuid[], p_kind text, p_actor text, p_request text, p_more jsonb default '{}') returns void
language plpgsql volatile as $$
begin
  if p_kind <> 'ISSUED' then update ticket.ticket set events = events + 1 where ticket_id = any(p_ids); end if;
  with t as materialized (
    select t.*, (select b.reference from booking.booking b where b.booking_id = t.booking_id) as reference
    from ticket.ticket t where t.ticket_id = any(p_ids)),
  a as (
    insert into office.audit (partner_id, actor, request_id, action, entity_kind, entity_id, diff)
    select partner_id, p_actor, p_request, 'ticket.' || p_kind, 'ticket', ticket_id,
      jsonb_build_object('state', state, 'version', version) || p_more from t)
  insert into office.outbox (part, topic, aggregate, version, partner_id, kind, body)
  select uuid_hash(ticket_id) & 3, 'ticket', ticket_id, events, partner_id, p_kind,
    jsonb_build_object('bookingId', booking_id, 'ref', reference, 'tripNo', trip_no, 'seat', seat, 'version', version, 'state', state,
      'validFrom', valid_from, 'validTo', valid_to) || p_more from t;
end $$;

-- A ticket for every passenger of these bookings that has none in force; how many that were. To be called in the transaction that confirms.
-- A seat whose ticket was revoked gets the same ticket in its next version. Refuses (TP422) a booking that is not paid for.
create function ticket.issue(p_ids uuid[], p_actor text, p_request text) returns int language plpgsql volatile as $$
declare wrong record; n record; v_key smallint; v_new uuid[] := '{}'; v_ticket uuid; v_now timestamptz := date_trunc('second', clock_timestamp());
begin
  select booking_id, state into wrong from booking.booking
    where booking_id = any(p_ids) and state not in ('CONFIRMED', 'CHECKED_IN', 'BOARDED') limit 1;
  if found then
    raise exception 'NOT_CONFIRMED' using errcode = 'TP422', detail = 'a ticket is issued for a booking that is paid for; this one is ' || wrong.state,
      hint = wrong.booking_id::text;
  end if;
  select max(key_id) into v_key from ticket.key where retired_at is null;
  -- A probe for each table and passenger (offset 0): a join, planned while these tables were empty, read them whole for every booking.
  for n in select b.booking_id, p.seat, b.partner_id, b.trip_no, b.legs, date_trunc('second', i.arrives_at) + interval '1 day' as valid_to, t.old
      from unnest(p_ids) u,
        lateral (select booking_id, partner_id, trip_no, legs from booking.booking where booking_id = u offset 0) b,
        lateral (select arrives_at from sale.trip_instance where trip_no = b.trip_no offset 0) i,
        lateral (select seat from booking.passenger where booking_id = b.booking_id and state <> 'CANCELLED' offset 0) p,
        lateral (select bool_or(state <> 'REVOKED') as valid, (array_agg(ticket_id order by revoked_at desc) filter (where version < 255))[1] as old
          from ticket.ticket where booking_id = b.booking_id and seat = p.seat offset 0) t
      where t.valid is not true loop
    if n.old is not null then
      update ticket.ticket set version = version + 1, events = events + 1, state = 'ISSUED', revoked_at = null, boarded_at = null,
          boarded_by = null, printed_seat = n.seat, trip_no = n.trip_no, legs = n.legs, key_id = v_key, valid_from = v_now, valid_to = n.valid_to
        where ticket_id = n.old;
      v_new := v_new || n.old;
    else
      insert into ticket.ticket (booking_id, seat, printed_seat, partner_id, trip_no, legs, key_id, valid_from, valid_to)
        values (n.booking_id, n.seat, n.seat, n.partner_id, n.trip_no, n.legs, v_key, v_now, n.valid_to) returning ticket_id into v_ticket;
      v_new := v_new || v_ticket;
    end if;
  end loop;
  perform ticket.note(v_new, 'ISSUED', p_actor, p_request);
  return cardinality(v_new);
end $$;

-- The tickets of these seats (null: of all) of these bookings are good no more; how many that were.
create function ticket.revoke(p_ids uuid[], p_seats int2[], p_actor text, p_request text) returns int language plpgsql volatile as $$
declare v_gone uuid[];
begin
  with w as (
    update ticket.ticket set state = 'REVOKED', revoked_at = clock_timestamp()
      where booking_id = any(p_ids) and (p_seats is null or seat = any(p_seats)) and state <> 'REVOKED' returning ticket_id)
  select coalesce(array_agg(ticket_id), '{}') into v_gone from w;
  perform ticket.note(v_gone, 'REVOKED', p_actor, p_request);
  return cardinality(v_gone);
end $$;

-- A bus swap: who sat on p_from[i] sits on p_to[i] now. The bytes of the ticket stay what they are, so its version does too.
create function ticket.reseat(p_booking uuid, p_from int2[], p_to int2[]) returns int language plpgsql volatile as $$
declare n int;
begin
  update ticket.ticket t set seat = -s.now from unnest(p_from, p_to) s(was, now)  -- by way of numbers that no seat has: two may change places
    where t.booking_id = p_booking and t.seat = s.was and t.state <> 'REVOKED';
  get diagnostics n = row_count;
  update ticket.ticket set seat = -seat where booking_id = p_booking and seat < 0;
  return n;
end $$;
