-- Changes to what was sold: cancellations as an offer and its confirmation, other names and seats, exchanges for another trip, bus swaps,
-- cancelled trips. Lock order and rules as in 0021; nothing here moves a state but `booking.move`.
--
-- What a change may not do is written where it could: a row of booking.booking never changes its trip (an exchange makes a new row, so that
-- events of one trip stay in order), and whoever takes claims away or adds some holds the trip's lock.

-- An operator may cancel a trip with people aboard: their money goes back like everybody's. Passengers cannot (engine/booking/changes.py).
insert into booking.edge (from_state, to_state) values ('BOARDED', 'CANCELLED') on conflict do nothing;

-- What a cancellation would cost, as it was offered. Good for the booking as it was then (`versions`), until it ends, and once.
create table booking.offer (
  offer_id uuid primary key,
  lead_id uuid not null,
  partner_id text not null,
  versions jsonb not null,                   -- {row id: version} of all rows of the booking
  parts jsonb not null,                      -- [{"id", "seats", "whole", "fee", "refund"}], minor units of `currency`
  fee bigint not null constraint offer_fee check (fee >= 0),
  refund bigint not null constraint offer_refund check (refund >= 0),
  currency text not null,
  expires_at timestamptz not null,
  used_at timestamptz,
  answer jsonb                               -- of its confirmation; null: not confirmed yet
);
create index offer_lead on booking.offer (lead_id);
create index offer_expiry on booking.offer (expires_at);

-- A booking for another trip that waits for the price difference, and the row that it will replace.
create table booking.exchange (
  lead_id uuid primary key,                  -- of the new booking
  partner_id text not null,
  from_id uuid not null references booking.booking,  -- the row that it replaces, once it is paid
  credit bigint not null,                    -- what that row counts for
  worth bigint not null,                     -- its total when the exchange was asked for: another one by now, and nothing is exchanged
  made_at timestamptz not null default clock_timestamp(),
  done_at timestamptz
);
create index exchange_from on booking.exchange (from_id);

-- Who would sit where on another bus: what was shown to the operator, so that it can be committed as it was shown.
create table sale.swap_plan (
  trip_no bigint not null references sale.trip_instance on delete cascade,
  plan_id text not null,                     -- digest of map version, layout, claims and moves
  partner_id text not null,
  map_version int not null,
  layout_id text not null,
  layout_version int not null,
  bus_id text,
  moves jsonb not null,                      -- [[booking id, old seat, new seat, from, to], ...], one for each claim that moves
  overflow jsonb not null,                   -- [[booking id, [old seats]], ...]
  made_at timestamptz not null default clock_timestamp(),
  answer jsonb,                              -- of its commit; null: not committed
  primary key (trip_no, plan_id)
);

-- How far the refunds of a cancelled trip have come. A booking is dealt with in one transaction with its count here: a worker that dies
-- leaves nothing half done, and the next one goes on with the bookings that still have seats.
create table booking.trip_cancellation (
  trip_no bigint primary key references sale.trip_instance,
  partner_id text not null,
  reason text,
  actor text not null,
  request_id text not null,
  bookings int not null default 0,
  refunded bigint not null default 0,        -- planned, minor units of the trip's currency
  started_at timestamptz not null default clock_timestamp(),
  finished_at timestamptz
);
create index trip_cancellation_open on booking.trip_cancellation (started_at) where finished_at is null;

select office.fence('booking.offer'), office.fence('booking.exchange'), office.fence('sale.swap_plan'), office.fence('booking.trip_cancellation');

-- ------------------------------------------------------------------------------------------------ seats of one booking

-- The arrays of a quote that stand beside the seats, in another order: p_order has the old place (from 1) of each seat.
create function booking.reordered(p_quote jsonb, p_order bigint[]) returns jsonb language sql immutable as $$
  select case when p_quote is null or p_order is null then p_quote else p_quote || coalesce((
    select jsonb_object_agg(name, (select coalesce(jsonb_agg(p_quote -> name -> (n - 1)::int order by place), '[]')
      from unnest(p_order) with ordinality o(n, place)))
    from unnest(array['classes', 'adult']) name where jsonb_typeof(p_quote -> name) = 'array'), '{}') end
$$;

-- Seat p_from[i] of a row is p_to[i] from now on, in its arrays and for its passengers; the rest stays. The row's version rises by one.
-- Somebody who was cancelled keeps no seat number that another passenger needs (the audit has them).
create function booking.renumber(p_id uuid, p_from int2[], p_to int2[], p_map int) returns void language plpgsql volatile as $$
begin
  delete from booking.passenger where booking_id = p_id and state = 'CANCELLED' and (seat = any(p_to) or p_map <> (
    select map_version from booking.booking where booking_id = p_id));
  update booking.passenger p set seat = -m.n from unnest(p_from, p_to) m(o, n) where p.booking_id = p_id and p.seat = m.o and p.state <> 'CANCELLED';
  update booking.passenger set seat = -seat where booking_id = p_id and seat < 0;
  update booking.ancillary a set seat = -m.n from unnest(p_from, p_to) m(o, n) where a.booking_id = p_id and a.seat = m.o;
  update booking.ancillary set seat = -seat where booking_id = p_id and seat < 0;
  update booking.booking b set map_version = p_map, version = b.version + 1, seats = s.seats, prices = s.prices,
      quote = booking.reordered(b.quote, s.places)
    from (
      select array_agg(u.now order by u.now) as seats, array_agg(u.price order by u.now) as prices, array_agg(u.place order by u.now) as places
      from (
        select coalesce(m.n, r.seat) as now, r.price, r.place
        from booking.booking o, unnest(o.seats, o.prices) with ordinality r(seat, price, place) left join unnest(p_from, p_to) m(o, n) on m.o = r.seat
        where o.booking_id = p_id) u) s
    where b.booking_id = p_id;
end $$;

-- More seats for a row that has some. Holds that are over are taken over. Raises TP409 with the seats that others have.
create function booking.claim(p_id uuid, p_partner text, p_trip bigint, p_map int, p_seats int2[], p_legs int4range, p_state text,
  p_request text) returns void language plpgsql volatile as $$
declare v_old uuid[]; v_got int2[];
begin
  select array_agg(distinct b.booking_id) into v_old
    from unnest(p_seats) u,
      lateral (select booking_id from booking.seat_claim
        where trip_no = p_trip and map_version = p_map and seat = u and active and legs && p_legs offset 0) c,
      lateral (select booking_id from booking.booking where booking_id = c.booking_id
        and state in ('HELD', 'PENDING_PAYMENT') and not paying and expires_at <= clock_timestamp() offset 0) b;
  if v_old is not null then perform booking.expire(v_old, p_request); end if;
  with c as (
    insert into booking.seat_claim (booking_id, map_version, seat, partner_id, trip_no, legs, state)
    select p_id, p_map, u, p_partner, p_trip, p_legs, p_state from unnest(p_seats) u order by u
    on conflict on constraint seat_leg_sold_once do nothing returning seat)
  select coalesce(array_agg(seat), '{}') into v_got from c;
  if cardinality(v_got) < cardinality(p_seats) then
    raise exception 'SEAT_TAKEN' using errcode = 'TP409',
      detail = array(select unnest(p_seats) except select unnest(v_got) order by 1)::text;
  end if;
end $$;

-- Other seats of the same trip for a row that the caller has locked: the new ones through the constraint, in seat order, then the old ones go.
create function booking.reseat(p_id uuid, p_from int2[], p_to int2[], p_moves jsonb, p_actor text, p_request text) returns void
language plpgsql volatile as $$
declare b booking.booking; v_gone int2[];
begin
  select * into b from booking.booking where booking_id = p_id;
  v_gone := array(select unnest(p_from) except select unnest(p_to) order by 1);
  perform booking.claim(p_id, b.partner_id, b.trip_no, b.map_version, array(select unnest(p_to) except select unnest(p_from) order by 1), b.legs,
    case when b.state in ('HELD', 'PENDING_PAYMENT') then 'HELD' else 'SOLD' end, p_request);
  delete from booking.seat_claim where booking_id = p_id and map_version = b.map_version and seat = any(v_gone) and state in ('HELD', 'SOLD');
  perform booking.renumber(p_id, p_from, p_to, b.map_version);
  perform booking.note(array[p_id], 'MODIFIED', p_actor, p_request, jsonb_build_object('moves', p_moves, 'was', jsonb_build_object(
    'seats', v_gone, 'from', lower(b.legs), 'to', upper(b.legs), 'map', b.map_version)));
end $$;

-- Some seats of a row are given up: their claims go, their passengers are CANCELLED, the row is worth p_total. Of a hold or a lease the
-- claims alone. At least one seat has to stay (the whole row is cancelled by booking.move).
create function booking.shrink(p_id uuid, p_seats int2[], p_total bigint, p_kind text, p_actor text, p_request text, p_more jsonb default '{}')
returns void language plpgsql volatile as $$
declare b booking.booking;
begin
  select * into b from booking.booking where booking_id = p_id;
  if b.seats <@ p_seats then raise exception 'NO_SEAT_LEFT' using errcode = 'TP422', detail = b.state; end if;
  delete from booking.seat_claim where booking_id = p_id and map_version = b.map_version and seat = any(p_seats) and state in ('HELD', 'SOLD');
  update booking.passenger set state = 'CANCELLED' where booking_id = p_id and seat = any(p_seats);
  delete from booking.ancillary where booking_id = p_id and seat = any(p_seats);
  update booking.booking o set version = o.version + 1, total = p_total, seats = s.seats, prices = s.prices,
      quote = booking.reordered(o.quote, s.places)
    from (
      select array_agg(r.seat order by r.place) as seats, array_agg(r.price order by r.place) as prices, array_agg(r.place order by r.place) as places
      from unnest(b.seats, b.prices) with ordinality r(seat, price, place) where not r.seat = any(p_seats)) s
    where o.booking_id = p_id;
  perform booking.note(array[p_id], p_kind, p_actor, p_request, jsonb_build_object('was', jsonb_build_object(
    'seats', p_seats, 'from', lower(b.legs), 'to', upper(b.legs), 'map', b.map_version)) || p_more);
end $$;

-- ------------------------------------------------------------------------------------------------ exchange

-- A fresh hold becomes a row of a booking that is paid for already: it joins its lead under its reference, with passengers of its own.
-- p_quote: the terms that it keeps; null: those it was held at.
create function booking.join_lead(p_new uuid, p_lead uuid, p_reference text, p_contact jsonb, p_total bigint, p_passengers jsonb,
  p_quote jsonb default null) returns void language plpgsql volatile as $$
begin
  insert into booking.passenger (booking_id, seat, partner_id, first_name, last_name, type, price, detail)
    select p_new, (p->>'seat')::int2, b.partner_id, p->>'first_name', p->>'last_name', p->>'type', (p->>'price')::bigint, p->'detail'
    from jsonb_array_elements(p_passengers) p, booking.booking b where b.booking_id = p_new;
  update booking.booking set lead_id = p_lead, reference = p_reference, contact = p_contact, total = p_total, quote = coalesce(p_quote, quote)
    where booking_id = p_new;
end $$;

-- Whether a booking that somebody has just paid for may be confirmed: an exchange only while what it replaces is what it was.
-- Locks that row with its trips: nothing can happen to it until the payment's transaction ends.
create or replace function money.may_confirm(p_lead uuid) returns bool language plpgsql volatile as $$
declare e booking.exchange; b booking.booking;
begin
  select * into e from booking.exchange where lead_id = p_lead;
  if not found then return true; end if;
  select l.* into b from booking.booking o, booking.locked(o.lead_id) l where o.booking_id = e.from_id and l.booking_id = e.from_id;
  return found and b.state in ('CONFIRMED', 'CHECKED_IN') and b.total = e.worth;
end $$;

-- The other end of an exchange, in the transaction that confirms the new booking: the old row is EXCHANGED, its tickets are good no more,
-- and all rows, payments and references of the old booking are the new one's from now on.
create or replace function money.confirmed(p_lead uuid, p_ids uuid[], p_actor text, p_request text) returns void
language plpgsql volatile as $$
declare e booking.exchange; v_old uuid; v_ref text; v_rest uuid[];
begin
  select * into e from booking.exchange where lead_id = p_lead and done_at is null;
  if not found then return; end if;
  select lead_id into v_old from booking.booking where booking_id = e.from_id;
  select min(reference) into v_ref from booking.booking where booking_id = any(p_ids);
  perform ticket.revoke(array[e.from_id], null, p_actor, p_request);
  perform booking.move(array[e.from_id], 'EXCHANGED', p_actor, p_request, null, jsonb_build_object('by', v_ref));
  update booking.booking set total = 0 where booking_id = e.from_id;   -- what it was worth is part of the new row's price
  perform money.carry(v_old, p_lead);
  update booking.booking set lead_id = p_lead, reference = v_ref where lead_id = v_old;
  update booking.reference set lead_id = p_lead, surnames = array(select distinct unnest(surnames || r.names)) 
    from (select array_agg(distinct s) as names from booking.reference o, unnest(o.surnames) s where o.lead_id in (v_old, p_lead)) r
    where lead_id in (v_old, p_lead);
  v_rest := array(select booking_id from booking.booking where lead_id = p_lead and booking_id <> e.from_id and not booking_id = any(p_ids)
    and state in ('CONFIRMED', 'CHECKED_IN', 'BOARDED'));
  if v_rest <> '{}' then
    update booking.booking set version = version + 1 where booking_id = any(v_rest);
    perform booking.note(v_rest, 'MODIFIED', p_actor, p_request, jsonb_build_object('ref', v_ref));
  end if;
  update booking.exchange set done_at = clock_timestamp() where lead_id = p_lead;
end $$;

-- ------------------------------------------------------------------------------------------------ another bus

-- The next map of a trip that the caller holds alone, with the rows of all its bookings locked and what has no place already gone: every
-- claim of p_ids[i] on p_from[i] goes to p_to[i]. Each booking is told once, with labels. Raises TP422 where a live claim is in no move.
create function booking.swap(p_trip bigint, p_map int, p_ids uuid[], p_from int2[], p_to int2[], p_layout_id text, p_bus text, p_seats int2[],
  p_labels text[], p_layout jsonb, p_actor text, p_request text) returns jsonb language plpgsql volatile as $$
declare t sale.trip_instance; v_lost uuid; v_old text[]; b record;
begin
  select booking_id into v_lost from booking.seat_claim c where trip_no = p_trip and map_version = p_map and active
    and not exists (select from unnest(p_ids, p_from) m(id, o) where m.id = c.booking_id and m.o = c.seat) limit 1;
  if found then raise exception 'PLAN_STALE' using errcode = 'TP422', detail = v_lost::text; end if;
  select labels into v_old from sale.seat_map where trip_no = p_trip and map_version = p_map;
  insert into sale.seat_map (trip_no, map_version, partner_id, seats, labels, layout)
    select trip_no, p_map + 1, partner_id, p_seats, p_labels, p_layout from sale.trip_instance where trip_no = p_trip;
  insert into booking.seat_claim (booking_id, map_version, seat, partner_id, trip_no, legs, state)
    select c.booking_id, p_map + 1, m.n, c.partner_id, c.trip_no, c.legs, c.state
    from unnest(p_ids, p_from, p_to) m(id, o, n), lateral (select * from booking.seat_claim k
      where k.booking_id = m.id and k.map_version = p_map and k.seat = m.o and k.state in ('HELD', 'SOLD') offset 0) c
    order by m.n, lower(c.legs);
  update booking.seat_claim set state = 'MOVED' where booking_id = any(p_ids) and map_version = p_map and state in ('HELD', 'SOLD');
  update sale.trip_instance set map_version = p_map + 1, layout_id = p_layout_id, bus_id = coalesce(p_bus, bus_id), version = version + 1
    where trip_no = p_trip returning * into t;
  for b in select m.id, array_agg(m.o order by m.o) as o, array_agg(m.n order by m.o) as n,
      jsonb_object_agg(v_old[m.o], p_labels[m.n]) as moves from unnest(p_ids, p_from, p_to) m(id, o, n) group by m.id order by m.id loop
    perform ticket.reseat(b.id, b.o, b.n);
    perform booking.renumber(b.id, b.o, b.n, p_map + 1);
    perform booking.note(array[b.id], 'MOVED', p_actor, p_request, jsonb_build_object('moves', b.moves));
  end loop;
  perform office.record(t.partner_id, p_actor, p_request, 'trip', 'BUS_SWAPPED', md5('trip:' || t.trip_id)::uuid, t.version,
    jsonb_build_object('tripId', t.trip_id, 'tripNo', p_trip, 'mapVersion', t.map_version, 'busId', t.bus_id, 'layoutId', t.layout_id),
    jsonb_build_object('mapVersion', p_map + 1, 'was', p_map));
  return jsonb_build_object('mapVersion', t.map_version, 'version', t.version, 'busId', t.bus_id);
end $$;

-- ------------------------------------------------------------------------------------------------ the trip itself

-- Sales of a trip stop or go on.
create function sale.set_open(p_trip bigint, p_open bool, p_actor text, p_request text) returns jsonb language plpgsql volatile as $$
declare t sale.trip_instance;
begin
  perform booking.lock_trip(p_trip, true);
  select * into t from sale.trip_instance where trip_no = p_trip;
  if t.status <> 'SCHEDULED' then return jsonb_build_object('status', 'REFUSED', 'code', 'SALES_CLOSED', 'trip', t.status); end if;
  if t.sales_open <> p_open then
    update sale.trip_instance set sales_open = p_open, version = version + 1 where trip_no = p_trip returning * into t;
    perform office.record(t.partner_id, p_actor, p_request, 'trip', case when p_open then 'SALES_OPENED' else 'SALES_CLOSED' end,
      md5('trip:' || t.trip_id)::uuid, t.version, jsonb_build_object('tripId', t.trip_id, 'tripNo', p_trip, 'salesOpen', p_open),
      jsonb_build_object('salesOpen', p_open));
  end if;
  return jsonb_build_object('status', 'OK', 'salesOpen', t.sales_open, 'version', t.version);
end $$;

-- A trip is cancelled: nobody can buy it from here on, and its bookings are to be dealt with one by one. Doing it twice says so twice.
create function booking.cancel_trip(p_trip bigint, p_reason text, p_actor text, p_request text) returns jsonb language plpgsql volatile as $$
declare t sale.trip_instance;
begin
  perform booking.lock_trip(p_trip, true);
  select * into t from sale.trip_instance where trip_no = p_trip;
  if t.status = 'COMPLETED' then return jsonb_build_object('status', 'REFUSED', 'code', 'TRIP_OVER'); end if;
  if t.status <> 'CANCELLED' then
    update sale.trip_instance set status = 'CANCELLED', sales_open = false, version = version + 1 where trip_no = p_trip returning * into t;
    perform office.record(t.partner_id, p_actor, p_request, 'trip', 'CANCELLED', md5('trip:' || t.trip_id)::uuid, t.version,
      jsonb_build_object('tripId', t.trip_id, 'tripNo', p_trip, 'reason', p_reason), jsonb_build_object('status', 'CANCELLED'));
  end if;
  insert into booking.trip_cancellation (trip_no, partner_id, reason, actor, request_id) values (p_trip, t.partner_id, p_reason, p_actor, p_request)
    on conflict do nothing;
  return jsonb_build_object('status', 'CANCELLED', 'version', t.version);
end $$;

-- One booking of a cancelled trip: its row on that trip is CANCELLED, its tickets are good no more, what it cost goes back in full. One that
-- nobody has paid for goes with both ways. Answers the refunds that are to be asked for. Does nothing where that was done already.
create function booking.cancel_for_trip(p_trip bigint, p_lead uuid) returns uuid[] language plpgsql volatile as $$
declare c booking.trip_cancellation; b booking.booking; v_refunds uuid[] := '{}'; v_back bigint; v_unpaid bool;
begin
  perform set_config('tp.partner', '*', true);
  select * into c from booking.trip_cancellation where trip_no = p_trip;
  if not found then return v_refunds; end if;
  perform from booking.locked(p_lead);
  v_unpaid := exists (select from booking.booking where lead_id = p_lead and trip_no = p_trip and state = 'PENDING_PAYMENT');
  for b in select * from booking.booking where lead_id = p_lead and (trip_no = p_trip or (v_unpaid and state = 'PENDING_PAYMENT'))
      and state in ('HELD', 'PENDING_PAYMENT', 'CONFIRMED', 'CHECKED_IN', 'BOARDED') order by booking_id loop
    perform ticket.revoke(array[b.booking_id], null, c.actor, c.request_id);
    perform booking.move(array[b.booking_id], 'CANCELLED', c.actor, c.request_id, null, jsonb_build_object('reason', 'TRIP_CANCELLED'));
    v_back := 0;
    if b.state in ('CONFIRMED', 'CHECKED_IN', 'BOARDED') then
      v_back := least(b.total, money.paid(p_lead));
      if v_back > 0 then
        v_refunds := v_refunds || money.plan_refund(p_lead, v_back, 'TRIP_CANCELLED', c.actor, c.request_id); end if;
    end if;
    update booking.trip_cancellation set bookings = bookings + 1, refunded = refunded + v_back where trip_no = p_trip;
  end loop;
  return v_refunds;
end $$;
