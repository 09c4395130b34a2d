-- Group commit of holds and of their ends: up to 32 requests of many callers in one call and one transaction, each caller all or nothing.
--
-- The judge is the same constraint. Nothing here waits for a person: a lock that is not free (a swap, a twin of the key, the same guest's
-- other hold, a row that somebody changes) and whatever else would have to wait or to change somebody else's booking (a hold that is over
-- and has to be taken over) answers RETRY, and the caller runs that one through hold() or release(), which wait, take over and word it. A
-- stranger's unfinished claim is waited for 50 ms at most; past that the whole call fails and all of it runs singly.

create type booking.wanted as (key uuid, print text, booking uuid, map int, seats int2[], prices bigint[], first int, last int, currency text,
  quote jsonb, holder text, channel text, actor text, request text, max_seats int, max_holds int);

create type booking.unwanted as (key uuid, print text, booking uuid, actor text, request text);

-- What is stored for a key, said to whoever sends it again.
create function booking.said_again(p_answer jsonb, p_stored bytea, p_print text) returns jsonb language sql immutable as $$
  select case when p_stored <> decode(p_print, 'hex') then '{"status":"REFUSED","code":"IDEMPOTENCY_KEY_REUSED"}'
    else p_answer || '{"replayed":true}' end
$$;

-- Holds on one trip: p_requests is a list of booking.wanted, seats ascending. Answers a list beside it: what hold() would, or {"status": "RETRY"}.
create function booking.hold_many(p_partner text, p_trip bigint, p_ttl interval, p_requests jsonb) returns jsonb language plpgsql volatile as $$
declare q booking.wanted[]; trip record; r record; seen record; v_ok bigint[]; v_busy bigint[]; v_over bigint[]; v_mask bigint; v_taken int2[];
  v_old bool; v_won bigint[] := '{}'; v_ids uuid[] := '{}'; v_out jsonb[] := '{}'; v_short uuid[]; s int2; v_last int2; v_first int; v_end int;
  v_until timestamptz := clock_timestamp() + p_ttl; n int := 0; v_closed jsonb; retry constant jsonb := '{"status":"RETRY"}';
begin
  perform set_config('tp.partner', '*', true), set_config('lock_timeout', '50ms', true);   -- a key may have been used at another operator
  select array_agg(w) into q from jsonb_populate_recordset(null::booking.wanted, p_requests) w;
  if not pg_try_advisory_xact_lock_shared(1, hashint8(p_trip)) then   -- never overtakes a waiting swap
    return to_jsonb(array_fill(retry, array[cardinality(q)])); end if;
  v_ok := array(select ordinality from unnest(q) with ordinality w
    where (w.key is null or pg_try_advisory_xact_lock(uuid_hash_extended(w.key, 0)))
      and (w.max_seats is null or pg_try_advisory_xact_lock(hashtextextended(w.holder, 2))));
  select i.map_version, i.status, i.sales_open, i.closes_at, i.stops, m.seats, cardinality(m.labels) as places into trip
    from sale.trip_instance i join sale.seat_map m on m.trip_no = i.trip_no and m.map_version = i.map_version
    where i.trip_no = p_trip and i.partner_id = p_partner;
  if not found then v_closed := '{"status":"REFUSED","code":"TRIP_NOT_FOUND"}';
  elsif not trip.sales_open or trip.status <> 'SCHEDULED' or trip.closes_at <= clock_timestamp() then
    v_closed := jsonb_build_object('status', 'REFUSED', 'code', 'SALES_CLOSED', 'trip', trip.status);
  else
    -- One bit for each leg, one word for each seat: what is taken, and what is held past its end.
    v_busy := array_fill(0::bigint, array[trip.places]); v_over := v_busy;
    select min(first), max(last) into v_first, v_end from unnest(q);
    for seen in select a.seat, bit_or((1::bigint << upper(a.legs)) - (1::bigint << lower(a.legs))) filter (where not b.over) as busy,
          bit_or((1::bigint << upper(a.legs)) - (1::bigint << lower(a.legs))) filter (where b.over) as over
        from (select distinct e as seat from unnest(q) w, unnest(w.seats) e) u,
          lateral (select seat, booking_id, legs from booking.seat_claim where trip_no = p_trip and map_version = trip.map_version
            and seat = u.seat and active and legs && int4range(least(v_first, v_end), greatest(v_first, v_end)) offset 0) a,
          lateral (select state in ('HELD', 'PENDING_PAYMENT') and not paying and expires_at <= clock_timestamp() as over
            from booking.booking where booking_id = a.booking_id offset 0) b
        group by a.seat loop
      if seen.seat between 1 and trip.places then
        v_busy[seen.seat] := coalesce(seen.busy, 0); v_over[seen.seat] := coalesce(seen.over, 0); end if;
    end loop;
  end if;

  for r in select w.*, i.fingerprint, i.answer, h.holds, h.held, not w.ordinality = any(v_ok)
          or (w.key is not null and row_number() over (partition by w.key) > 1)
          or (w.max_seats is not null and row_number() over (partition by w.holder) > 1) as again
      from unnest(q) with ordinality w
        left join lateral (select fingerprint, answer from office.idempotency where key = w.key offset 0) i on true
        left join lateral (select count(*) as holds, coalesce(sum(cardinality(b.seats)), 0) as held from booking.booking b
          where w.max_seats is not null and b.holder = w.holder and b.state in ('HELD', 'PENDING_PAYMENT')
            and b.expires_at > clock_timestamp() offset 0) h on true
      order by w.ordinality loop
    n := n + 1;
    if r.again then v_out[n] := retry; continue; end if;
    if r.answer is not null then v_out[n] := booking.said_again(r.answer, r.fingerprint, r.print); continue; end if;
    if v_closed is not null then v_out[n] := v_closed; continue; end if;
    if trip.map_version <> r.map then v_out[n] := '{"status":"REFUSED","code":"STALE_MAP"}'; continue; end if;
    if r.first < 0 or r.last >= trip.stops or r.first >= r.last or r.seats = '{}' or not r.seats <@ trip.seats
       or cardinality(r.seats) <> cardinality(r.prices) then v_out[n] := '{"status":"REFUSED","code":"INVALID"}'; continue; end if;
    v_mask := (1::bigint << r.last) - (1::bigint << r.first); v_taken := null; v_old := false; v_last := 0;
    foreach s in array r.seats loop
      if v_last < 0 or s <= v_last then v_last := -1; else v_last := s; end if;
      if v_busy[s] & v_mask <> 0 then v_taken := v_taken || s; elsif v_over[s] & v_mask <> 0 then v_old := true; end if;
    end loop;
    if v_last < 0 then v_out[n] := '{"status":"REFUSED","code":"INVALID"}'; continue; end if;   -- a seat twice, or not ascending
    if v_taken is not null then
      v_out[n] := jsonb_build_object('status', 'REFUSED', 'code', 'SEAT_TAKEN', 'seats', v_taken); continue; end if;
    if r.holds >= r.max_holds or r.held + cardinality(r.seats) > r.max_seats then
      v_out[n] := jsonb_build_object('status', 'REFUSED', 'code', 'HOLD_LIMIT', 'holds', r.holds, 'held', r.held); continue; end if;
    if v_old then v_out[n] := retry; continue; end if;
    foreach s in array r.seats loop v_busy[s] := v_busy[s] | v_mask; end loop;
    v_out[n] := jsonb_build_object('status', 'HELD', 'booking', r.booking, 'version', 1, 'tripNo', p_trip, 'map', r.map, 'seats', r.seats,
      'prices', r.prices, 'from', r.first, 'to', r.last, 'until', v_until);
    v_won := v_won || n::bigint; v_ids := v_ids || r.booking;
  end loop;
  if v_won = '{}' then return to_jsonb(v_out); end if;

  perform set_config('tp.partner', p_partner, true);
  with w as materialized (
      select w.booking, e as seat, int4range(w.first, w.last) as legs from unnest(q) with ordinality w, unnest(w.seats) e
      where w.ordinality = any(v_won)),
    c as (
      insert into booking.seat_claim (booking_id, map_version, seat, partner_id, trip_no, legs, state)
      select booking, trip.map_version, seat, p_partner, p_trip, legs, 'HELD' from w order by seat, booking
      on conflict on constraint seat_leg_sold_once do nothing returning booking_id, seat)
  select array_agg(distinct w.booking) into v_short from w left join c on c.booking_id = w.booking and c.seat = w.seat where c.seat is null;
  if v_short is not null then   -- lost to somebody outside: those callers have nothing, and who lost to them within may win yet
    delete from booking.seat_claim where booking_id = any(v_short);
    for i in 1 .. n loop
      if (v_out[i]->>'booking')::uuid = any(v_short) then v_out[i] := retry; v_won := array_remove(v_won, i::bigint);
      elsif v_out[i]->>'code' = 'SEAT_TAKEN' then v_out[i] := retry; end if;
    end loop;
    if v_won = '{}' then return to_jsonb(v_out); end if;
  end if;
  with w as materialized (select * from unnest(q) with ordinality w where w.ordinality = any(v_won)),
  b as (
    insert into booking.booking (booking_id, lead_id, partner_id, trip_no, map_version, seats, prices, currency, legs, holder, channel, state,
      version, expires_at, quote)
    select booking, booking, p_partner, p_trip, map, seats, prices, currency, int4range(first, last), holder, channel, 'HELD', 1, v_until, quote
      from w),
  a as (
    insert into office.audit (partner_id, actor, request_id, action, entity_kind, entity_id, diff)
    select p_partner, actor, request, 'booking.HELD', 'booking', booking, '{"state":"HELD","version":1}' from w),
  i as (
    insert into office.idempotency (key, partner_id, fingerprint, answer)
    select key, p_partner, decode(print, 'hex'), v_out[ordinality] from w where key is not null)
  insert into office.outbox (part, topic, aggregate, version, partner_id, kind, body)
  select hashint8(p_trip) & 3, 'booking', booking, 1, p_partner, 'HELD', jsonb_build_object('tripNo', p_trip, 'map', map, 'seats', seats,
    'from', first, 'to', last, 'state', 'HELD', 'until', v_until) from w;
  return to_jsonb(v_out);
end $$;

-- Ends of holds and of bookings that nobody has paid, of any trips: p_requests is a list of booking.unwanted. Answers a list beside it: what
-- release() would, or {"status": "RETRY"}. Only bookings of one row; the two of a return trip go by release().
create function booking.release_many(p_requests jsonb) returns jsonb language plpgsql volatile as $$
declare q booking.unwanted[]; r record; v_ok bigint[]; v_locked uuid[]; v_gone uuid[] := '{}'; v_won bigint[] := '{}'; v_kept bigint[] := '{}';
  v_out jsonb[] := '{}'; n int := 0; retry constant jsonb := '{"status":"RETRY"}';
begin
  perform set_config('tp.partner', '*', true), set_config('lock_timeout', '50ms', true);
  select array_agg(w) into q from jsonb_populate_recordset(null::booking.unwanted, p_requests) w;
  v_ok := array(select w.ordinality from unnest(q) with ordinality w
    where w.key is null or pg_try_advisory_xact_lock(uuid_hash_extended(w.key, 0)));
  v_ok := array(select w.ordinality from unnest(q) with ordinality w,
      lateral (select trip_no from booking.booking where booking_id = w.booking and lead_id = w.booking offset 0) b
    where w.ordinality = any(v_ok) and pg_try_advisory_xact_lock_shared(1, hashint8(b.trip_no)));
  v_locked := array(select booking_id from booking.booking where booking_id = any(array(select w.booking from unnest(q) w))
    order by booking_id for update skip locked);
  for r in select w.*, i.fingerprint, i.answer, b.state, b.version, b.paying, b.partner_id,
        not w.ordinality = any(v_ok) or not w.booking = any(v_locked) or b.rows <> 1
          or row_number() over (partition by w.booking) > 1 or (w.key is not null and row_number() over (partition by w.key) > 1) as again
      from unnest(q) with ordinality w
        left join lateral (select fingerprint, answer from office.idempotency where key = w.key offset 0) i on true
        left join lateral (select min(state) as state, min(version) as version, bool_or(paying) as paying, min(partner_id) as partner_id,
          count(*) as rows from booking.booking where lead_id = w.booking offset 0) b on true
      order by w.ordinality loop
    n := n + 1;
    if r.again then v_out[n] := retry; continue; end if;
    if r.answer is not null then v_out[n] := booking.said_again(r.answer, r.fingerprint, r.print); continue; end if;
    if r.paying then v_out[n] := '{"status":"REFUSED","code":"PAYMENT_IN_PROGRESS"}'; continue; end if;
    if r.state in ('HELD', 'PENDING_PAYMENT') then
      r.version := r.version + 1; v_won := v_won || n::bigint; v_gone := v_gone || r.booking;
    elsif r.state not in ('RELEASED', 'EXPIRED') then
      v_out[n] := jsonb_build_object('status', 'REFUSED', 'code', 'WRONG_STATE', 'state', r.state); continue;
    end if;
    v_kept := v_kept || n::bigint;
    v_out[n] := jsonb_build_object('status', 'RELEASED', 'booking', r.booking, 'version', r.version);
  end loop;
  if v_won <> '{}' then
    delete from booking.seat_claim where booking_id = any(v_gone) and state in ('HELD', 'SOLD');
    with b as (
      update booking.booking set state = 'RELEASED', version = version + 1, paying = false where booking_id = any(v_gone)
        returning booking_id, partner_id, trip_no, map_version, seats, legs, version, reference),
    w as (select b.*, w.actor, w.request from unnest(q) with ordinality w join b on b.booking_id = w.booking where w.ordinality = any(v_won)),
    a as (
      insert into office.audit (partner_id, actor, request_id, action, entity_kind, entity_id, diff)
      select partner_id, actor, request, 'booking.RELEASED', 'booking', booking_id,
        jsonb_build_object('state', 'RELEASED', 'version', version) from w)
    insert into office.outbox (part, topic, aggregate, version, partner_id, kind, body)
    select hashint8(trip_no) & 3, 'booking', booking_id, version, partner_id, 'RELEASED', jsonb_build_object('tripNo', trip_no,
      'map', map_version, 'seats', seats, 'from', lower(legs), 'to', upper(legs), 'state', 'RELEASED', 'ref', reference, 'until', null) from w;
  end if;
  if v_kept <> '{}' then
    insert into office.idempotency (key, partner_id, fingerprint, answer)
    select w.key, b.partner_id, decode(w.print, 'hex'), v_out[w.ordinality] from unnest(q) with ordinality w,
      lateral (select partner_id from booking.booking where booking_id = w.booking offset 0) b
    where w.ordinality = any(v_kept) and w.key is not null;
  end if;
  return to_jsonb(v_out);
end $$;
