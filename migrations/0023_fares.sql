-- Prices: what was quoted, promo codes, what is sold beside the seats; and the opener's way to put trips on sale.

alter table sale.offer add column version int not null default 1;

-- Every quote somebody asked for, and every change of a trip's multiplier. What a hold was sold at stands on its booking.
create table sale.price_log (
  price_id uuid primary key,                                  -- of a QUOTE: its quoteId
  partner_id text not null,
  trip_no bigint not null references sale.trip_instance on delete cascade,
  kind text not null constraint price_log_kind check (kind in ('QUOTE', 'MULTIPLIER')),
  at timestamptz not null default clock_timestamp(),
  valid_until timestamptz,                                    -- of a QUOTE: a hold by then gets its prices
  multiplier int not null,                                    -- permille
  body jsonb not null                                         -- the quote, with places, seat kinds and passenger types; of a MULTIPLIER its reasons
);
create index price_log_trip on sale.price_log (trip_no, at);

-- ------------------------------------------------------------------------------------------------ promo codes

create table sale.promo_code (
  partner_id text not null references public.partner,
  code text not null constraint promo_code_form check (code ~ '^[A-Z0-9_-]{3,24}$'),
  kind text not null constraint promo_code_kind check (kind in ('PERCENT', 'FIXED')),
  value bigint not null constraint promo_code_value check (value > 0 and (kind = 'FIXED' or value <= 1000)),
  currency text,
  min_amount bigint not null default 0 constraint promo_code_least check (min_amount >= 0),
  valid_from timestamptz not null,
  valid_to timestamptz,
  route_ids text[] not null default '{}',                     -- empty: every route of the operator
  max_uses int constraint promo_code_max_uses check (max_uses > 0),
  max_uses_each int constraint promo_code_max_uses_each check (max_uses_each > 0),
  uses int not null default 0,                                -- at least as many as count; counted anew where it has reached max_uses
  version int not null default 1,
  changed_at timestamptz not null default clock_timestamp(),
  retired_at timestamptz,
  primary key (partner_id, code),
  constraint promo_code_currency check (currency is not null or (kind = 'PERCENT' and min_amount = 0))
);

-- Which booking used a code: one row with person '' and one for each thing that tells who it was (customer, e-mail, telephone). A use counts
-- as long as its booking stands, so an unpaid booking that expires gives it back by expiring.
create table sale.promo_use (
  partner_id text not null,
  code text not null,
  person text not null,
  lead_id uuid not null,
  amount bigint not null,                                     -- taken off, minor units
  at timestamptz not null default clock_timestamp(),
  primary key (partner_id, code, person, lead_id)
);
create index promo_use_lead on sale.promo_use (lead_id);

-- How many uses of a code by one person ('': by anybody) count, without those of one booking.
create function sale.promo_uses(p_partner text, p_code text, p_person text, p_but uuid) returns int language plpgsql volatile as $$
declare n int;
begin
  select count(*) into n from sale.promo_use u,
    lateral (select from booking.booking b where b.lead_id = u.lead_id
      and b.state not in ('EXPIRED', 'RELEASED', 'CANCELLED', 'REFUNDED') limit 1) alive
    where u.partner_id = p_partner and u.code = p_code and u.person = p_person and u.lead_id <> p_but;
  return n;
end $$;

-- A booking uses a code. The code's row is locked to the end of the transaction: uses of one code follow one another, and none is over its
-- limit. `uses` alone decides while it is below max_uses; it never counts too few, for only a count under this lock lowers it.
create function sale.use_promo(p_partner text, p_code text, p_lead uuid, p_persons text[], p_amount bigint) returns void
language plpgsql volatile as $$
declare c record; n int; who text;
begin
  select max_uses, max_uses_each, uses into c from sale.promo_code where partner_id = p_partner and code = p_code for update;
  if not found then raise exception 'PROMO_NOT_VALID' using errcode = 'TP409', detail = p_code; end if;
  n := c.uses;
  if c.max_uses is not null and n >= c.max_uses then
    n := sale.promo_uses(p_partner, p_code, '', p_lead);
    if n >= c.max_uses then raise exception 'PROMO_USED_UP' using errcode = 'TP409', detail = p_code; end if;
  end if;
  if c.max_uses_each is not null then
    foreach who in array p_persons loop
      if sale.promo_uses(p_partner, p_code, who, p_lead) >= c.max_uses_each then
        raise exception 'PROMO_USED_UP' using errcode = 'TP409', detail = p_code, hint = 'person';
      end if;
    end loop;
  end if;
  insert into sale.promo_use (partner_id, code, person, lead_id, amount)
    select p_partner, p_code, who_, p_lead, p_amount from unnest(array_append(p_persons, '')) who_ group by who_ on conflict do nothing;
  if found then update sale.promo_code set uses = n + 1 where partner_id = p_partner and code = p_code; end if;
end $$;

-- ------------------------------------------------------------------------------------------------ ancillaries

-- Baggage, meals and the like, sold with a booking; they follow its state.
create table booking.ancillary (
  booking_id uuid not null references booking.booking on delete cascade,
  seat int2 not null default 0,                               -- whose it is; 0: of nobody in particular
  code text not null,
  partner_id text not null,
  trip_no bigint not null,
  kind text not null,
  name text not null,
  count int2 not null constraint ancillary_count check (count between 1 and 1000),
  price bigint not null,                                      -- of one, minor units
  stock int,                                                  -- of the trip instance, as it was when this was sold; null: without end
  primary key (booking_id, seat, code)
);
create index ancillary_trip on booking.ancillary (trip_no, code);

-- How many of one thing are taken on a trip, without those of some bookings.
create function sale.ancillaries_taken(p_trip bigint, p_code text, p_but uuid[]) returns int language plpgsql volatile as $$
declare n int;
begin
  select coalesce(sum(a.count), 0) into n from booking.ancillary a,
    lateral (select from booking.booking b where b.booking_id = a.booking_id
      and b.state not in ('EXPIRED', 'RELEASED', 'CANCELLED', 'REFUNDED', 'EXCHANGED') limit 1) alive
    where a.trip_no = p_trip and a.code = p_code and a.booking_id <> all (p_but);
  return n;
end $$;

-- Stock of one thing on one trip is counted under this lock. Taken after the bookings and the promo code, by trip, then code.
create function sale.lock_stock(p_trip bigint, p_code text) returns void language plpgsql volatile as $$
begin
  perform pg_advisory_xact_lock(3, hashint8(p_trip) # hashtext(p_code));
end $$;

-- p_items: [{"booking", "seat", "code", "kind", "name", "count", "price", "stock"}], of bookings whose rows the caller has locked.
create function sale.take_ancillaries(p_items jsonb) returns void language plpgsql volatile as $$
declare i record; n int;
begin
  for i in
    select b.trip_no, x.code, min(x.stock) as stock, sum(x.count)::int as count, array_agg(x.booking) as ids
      from jsonb_to_recordset(p_items) x(booking uuid, code text, stock int, count int) join booking.booking b on b.booking_id = x.booking
      group by b.trip_no, x.code having min(x.stock) is not null order by b.trip_no, x.code
  loop
    perform sale.lock_stock(i.trip_no, i.code);
    n := sale.ancillaries_taken(i.trip_no, i.code, '{}');
    if n + i.count > i.stock then
      raise exception 'ANCILLARY_SOLD_OUT' using errcode = 'TP409', detail = i.code, hint = greatest(i.stock - n, 0)::text;
    end if;
  end loop;
  insert into booking.ancillary (booking_id, seat, code, partner_id, trip_no, kind, name, count, price, stock)
    select x.booking, coalesce(x.seat, 0), x.code, b.partner_id, b.trip_no, x.kind, x.name, x.count, x.price, x.stock
      from jsonb_to_recordset(p_items) x(booking uuid, seat int2, code text, kind text, name text, count int2, price bigint, stock int)
      join booking.booking b on b.booking_id = x.booking;
end $$;

-- Inside book(): {"promo": {"code", "amount", "persons": []}, "ancillaries": [...]}, made by engine/booking/extras.py.
create or replace function booking.take_extras(p_ids uuid[], p_extras jsonb, p_actor text, p_request text) returns void
language plpgsql volatile as $$
declare v_partner text; v_promo jsonb := p_extras->'promo';
begin
  if p_extras is null then return; end if;
  if jsonb_typeof(v_promo) = 'object' then
    select min(partner_id) into v_partner from booking.booking where booking_id = any(p_ids);
    perform sale.use_promo(v_partner, v_promo->>'code', p_ids[1], array(select jsonb_array_elements_text(v_promo->'persons')),
      (v_promo->>'amount')::bigint);
  end if;
  if jsonb_typeof(p_extras->'ancillaries') = 'array' then perform sale.take_ancillaries(p_extras->'ancillaries'); end if;
end $$;

-- Money that came late: may an expired booking be confirmed after all, as far as its promo code and what it bought beside its seats go? True
-- holds to the end of the transaction (the code and the stock stay locked), which must confirm the booking. Its rows are locked already.
create function sale.retake(p_lead uuid) returns bool language plpgsql volatile as $$
declare u record; c record; n int; i record; v_ids uuid[];
begin
  select array_agg(booking_id) into v_ids from booking.booking where lead_id = p_lead;
  for u in select distinct partner_id, code from sale.promo_use where lead_id = p_lead loop
    select max_uses into c from sale.promo_code where partner_id = u.partner_id and code = u.code for update;
    n := sale.promo_uses(u.partner_id, u.code, '', p_lead);
    if c.max_uses is not null and n >= c.max_uses then return false; end if;
    update sale.promo_code set uses = greatest(uses, n + 1) where partner_id = u.partner_id and code = u.code;
  end loop;
  for i in
    select trip_no, code, min(stock) as stock, sum(count)::int as count from booking.ancillary where booking_id = any(v_ids)
      group by trip_no, code having min(stock) is not null order by trip_no, code
  loop
    perform sale.lock_stock(i.trip_no, i.code);
    if sale.ancillaries_taken(i.trip_no, i.code, v_ids) + i.count > i.stock then return false; end if;
  end loop;
  return true;
end $$;

-- ------------------------------------------------------------------------------------------------ what prices look at

-- Permille of the seats of a trip that are taken, leg by leg: a seat sold for half the way counts half.
create function sale.occupancy(p_partner text, p_trip bigint, p_map int) returns int language plpgsql volatile as $$
declare v_taken bigint; v_all bigint;
begin
  perform set_config('tp.partner', p_partner, true);
  select cardinality(m.seats) * (i.stops - 1)::bigint into v_all from sale.trip_instance i
    join sale.seat_map m on m.trip_no = i.trip_no and m.map_version = p_map where i.trip_no = p_trip;
  select coalesce(sum(upper(legs) - lower(legs)), 0) into v_taken from booking.seat_claim
    where trip_no = p_trip and map_version = p_map and active;
  return case when coalesce(v_all, 0) = 0 then 0 else least(v_taken * 1000 / v_all, 1000) end;
end $$;

-- A trip's multiplier as it now stands, noted where it is another than the last one noted.
create function sale.note_multiplier(p_partner text, p_trip bigint, p_id uuid, p_multiplier int, p_body jsonb) returns bool
language plpgsql volatile as $$
begin
  perform set_config('tp.partner', p_partner, true);
  if p_multiplier is not distinct from (
      select multiplier from sale.price_log where trip_no = p_trip and kind = 'MULTIPLIER' order by at desc limit 1) then return false; end if;
  insert into sale.price_log (price_id, partner_id, trip_no, kind, multiplier, body)
    values (p_id, p_partner, p_trip, 'MULTIPLIER', p_multiplier, p_body);
  return true;
end $$;

-- ------------------------------------------------------------------------------------------------ opening and ending sales

-- Puts trips of one offer on sale, with their stops and the first version of their seat map; those that are known stay as they are.
-- p_offer: {"feed_id", "route_id", "timezone", "layout_id", "fare_plan_id", "currency", "seats", "labels", "layout"}; p_trips: [{"id", "date",
-- "headsign", "closes_ms", "departs_ms", "arrives_ms", "stops": [[place, sequence, id, name, lat, lon, arrives_ms, departs_ms, pickup, drop_off]]}].
create function sale.open_trips(p_partner text, p_offer jsonb, p_trips jsonb, p_request text) returns int language plpgsql volatile as $$
declare n int;
begin
  perform set_config('tp.partner', p_partner, true);
  with wanted as materialized (
    select e->>'id' as trip_id, (e->>'date')::date as start_date, e->>'headsign' as headsign, (e->>'closes_ms')::bigint as closes_ms,
      (e->>'departs_ms')::bigint as departs_ms, (e->>'arrives_ms')::bigint as arrives_ms, e->'stops' as stops
    from jsonb_array_elements(p_trips) e),
  fresh as (
    insert into sale.trip_instance (trip_id, partner_id, feed_id, route_id, start_date, headsign, closes_at, stops, departs_at, arrives_at,
      timezone, layout_id, fare_plan_id, currency)
    select trip_id, p_partner, p_offer->>'feed_id', p_offer->>'route_id', start_date, headsign, to_timestamp(closes_ms / 1000.0),
      jsonb_array_length(stops), to_timestamp(departs_ms / 1000.0), to_timestamp(arrives_ms / 1000.0), p_offer->>'timezone',
      p_offer->>'layout_id', p_offer->>'fare_plan_id', p_offer->>'currency'
    from wanted order by departs_ms, trip_id
    on conflict (trip_id) do nothing returning trip_no, trip_id, departs_at),
  halts as (
    insert into sale.trip_stop (trip_no, place, partner_id, stop_sequence, stop_id, name, lat, lon, arrives_at, departs_at, pickup, drop_off)
    select f.trip_no, (s->>0)::int2, p_partner, (s->>1)::int, s->>2, s->>3, (s->>4)::float8, (s->>5)::float8,
      to_timestamp((s->>6)::bigint / 1000.0), to_timestamp((s->>7)::bigint / 1000.0), (s->>8)::bool, (s->>9)::bool
    from fresh f join wanted w using (trip_id), jsonb_array_elements(w.stops) s),
  maps as (
    insert into sale.seat_map (trip_no, map_version, partner_id, seats, labels, layout)
    select trip_no, 1, p_partner, array(select jsonb_array_elements_text(p_offer->'seats')::int2),
      array(select jsonb_array_elements_text(p_offer->'labels')), p_offer->'layout' from fresh),
  said as (
    select office.record(p_partner, 'system', p_request, 'trip', 'SCHEDULED', md5('trip:' || trip_id)::uuid, 1,
      jsonb_build_object('tripNo', trip_no, 'tripId', trip_id, 'routeId', p_offer->>'route_id', 'departsAt', departs_at)) from fresh)
  select count(*) into n from said;
  return n;
end $$;

-- Ends sales that are over, and trips that arrived p_after ago; at most p_most of each at a time. {"closed", "completed"}.
create function sale.end_trips(p_after interval, p_most int, p_request text) returns jsonb language plpgsql volatile as $$
declare v_closed bigint[]; v_over bigint[];
begin
  perform set_config('tp.partner', '*', true);
  with due as (
    select trip_no from sale.trip_instance where sales_open and closes_at <= clock_timestamp() order by closes_at limit p_most
    for update skip locked),
  gone as (
    update sale.trip_instance i set sales_open = false, version = i.version + 1 from due where i.trip_no = due.trip_no
    returning i.trip_no, i.partner_id, i.trip_id, i.version),
  said as (
    select trip_no, office.record(partner_id, 'system', p_request, 'trip', 'SALES_CLOSED', md5('trip:' || trip_id)::uuid, version,
      jsonb_build_object('tripNo', trip_no, 'tripId', trip_id)) from gone)
  select array_agg(trip_no) into v_closed from said;
  with due as (
    select trip_no from sale.trip_instance
    where status in ('SCHEDULED', 'STARTED') and not sales_open and arrives_at <= clock_timestamp() - p_after order by arrives_at limit p_most
    for update skip locked),
  gone as (
    update sale.trip_instance i set status = 'COMPLETED', version = i.version + 1 from due where i.trip_no = due.trip_no
    returning i.trip_no, i.partner_id, i.trip_id, i.version),
  said as (
    select trip_no, office.record(partner_id, 'system', p_request, 'trip', 'COMPLETED', md5('trip:' || trip_id)::uuid, version,
      jsonb_build_object('tripNo', trip_no, 'tripId', trip_id)) from gone)
  select array_agg(trip_no) into v_over from said;
  return jsonb_build_object('closed', coalesce(cardinality(v_closed), 0), 'completed', coalesce(cardinality(v_over), 0));
end $$;
create index trip_instance_selling on sale.trip_instance (closes_at) where sales_open;
create index trip_instance_going on sale.trip_instance (arrives_at) where status in ('SCHEDULED', 'STARTED');

-- ------------------------------------------------------------------------------------------------ what the office changes

-- Audit row and event of a change to what an operator offers: topic partner, one aggregate for each thing.
create function sale.note_change(p_partner text, p_actor text, p_request text, p_kind text, p_what text, p_version int, p_before jsonb,
  p_after jsonb) returns void language plpgsql volatile as $$
begin
  perform office.record(p_partner, p_actor, p_request, 'partner', p_kind, md5(p_kind || ':' || p_partner || ':' || p_what)::uuid, p_version,
    jsonb_build_object('id', p_what, 'version', p_version), jsonb_build_object('before', p_before, 'after', p_after));
end $$;

select office.fence('sale.price_log'), office.fence('sale.promo_code'), office.fence('sale.promo_use'), office.fence('booking.ancillary');
