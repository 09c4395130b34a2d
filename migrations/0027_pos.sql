-- Counters and conductors that sell without a network: devices, what they have leased, each sale as it was sent and what became of it, and
-- the cash sessions of their drawers.
--
-- A lease is a booking of channel LEASE in state HELD, its claims HELD; a sale from it takes legs out of a claim of the lease and gives them
-- to a booking of its own, in one transaction, seat by seat. Lock order: key, device (its row: the syncs of one device stand in line),
-- trips, bookings by id, claims by seat.

create schema pos;

create table pos.device (
  partner_id text not null references public.partner,
  device_id text not null constraint pos_device_id check (device_id ~ '^[A-Za-z0-9._-]{1,64}$'),
  name text not null default '',
  token_sha256 bytea constraint pos_device_token unique,     -- null: used by people who are signed in
  created_at timestamptz not null default clock_timestamp(),
  retired_at timestamptz,
  version int not null default 1,
  primary key (partner_id, device_id)
);

-- What an operator does with a sale whose seat is gone: the money back, or other seats offered first. No row: the money back.
create table pos.policy (
  partner_id text primary key references public.partner,
  on_conflict text not null constraint pos_policy_conflict check (on_conflict in ('REFUND', 'OFFER')),
  version int not null default 1
);

create table pos.lease (
  lease_id uuid primary key references booking.booking on delete cascade,
  partner_id text not null,
  device_id text not null,
  trip_no bigint not null references sale.trip_instance,
  labels text[] not null,                                    -- as leased; what is left is claims
  legs int4range not null,
  tariff jsonb not null,                                     -- the prices of then (engine/booking/pos.py, Tariff)
  leased_at timestamptz not null default clock_timestamp(),
  ended_at timestamptz,                                      -- the rest was given back; null: it ends where its booking expires
  foreign key (partner_id, device_id) references pos.device
);
create index pos_lease_device on pos.lease (device_id, trip_no, partner_id);

create table pos.sale (
  partner_id text not null,
  device_id text not null,
  seq bigint not null,                                       -- the device's own number
  fingerprint bytea not null,
  trip_no bigint not null references sale.trip_instance,
  lease_id uuid,                                             -- null: made from none
  seat text not null,                                        -- label, as sold
  legs int4range not null,
  sold_at timestamptz not null,                              -- by our clock
  received_at timestamptz not null default clock_timestamp(),
  amount bigint not null constraint pos_sale_amount check (amount >= 0),
  currency text not null,
  method text not null constraint pos_sale_method check (method in ('CASH', 'CARD_TOKEN')),
  passenger jsonb not null,
  void bool not null,                                        -- the money was handed back
  result text not null constraint pos_sale_result check (result in ('CONFIRMED', 'CONFLICT_REFUND', 'STANDBY', 'VOIDED')),
  code text,                                                 -- why not CONFIRMED, or RESEATED
  booking_id uuid references booking.booking,                -- where its money is; null: none was taken
  reference text,
  given text,                                                -- label of the seat it has; null: none
  version int not null default 1,
  primary key (partner_id, device_id, seq)
);
create index pos_sale_lease on pos.sale (lease_id, seat);

create table pos.session (
  session_id uuid primary key,
  partner_id text not null,
  device_id text not null,
  currency text not null,
  opened_by text not null,
  opened_at timestamptz not null default clock_timestamp(),
  opened_with bigint not null constraint pos_session_float check (opened_with >= 0),
  closed_by text,
  closed_at timestamptz,
  counted bigint constraint pos_session_counted check (counted >= 0),
  expected bigint,
  difference bigint,                                         -- counted - expected
  foreign key (partner_id, device_id) references pos.device,
  -- one at a time: a drawer has one hand in it
  constraint pos_session_open exclude using btree (partner_id with =, device_id with =) where (closed_at is null)
);

select office.fence('pos.device'), office.fence('pos.policy'), office.fence('pos.lease'), office.fence('pos.sale'), office.fence('pos.session');

-- The aggregate of a thing that has a name and no uuid.
create function pos.aggregate(p_kind text, p_partner text, p_name text) returns uuid language sql immutable as $$
  select md5('pos.' || p_kind || ':' || p_partner || ':' || p_name)::uuid
$$;

-- ------------------------------------------------------------------------------------------------ seats

-- What is left of one seat of a lease, made anew: as few and as long ranges as can be; p_left empty: the seat leaves the lease. Every row of
-- the lease has all its seats for all its legs, so a range that no row has gets one of its own (under the same lead: they end together).
-- The lease's rows are locked.
create function pos.keep(p_lease uuid, p_map int, p_seat int2, p_left int4range[], p_actor text, p_request text) returns void language plpgsql volatile as $$
declare r int4range; v_row uuid;
begin
  delete from booking.seat_claim where map_version = p_map and seat = p_seat and state = 'HELD'
    and booking_id in (select booking_id from booking.booking where lead_id = p_lease);
  update booking.booking b set prices = array(select b.prices[i] from generate_subscripts(b.seats, 1) i where b.seats[i] <> p_seat order by i),
      seats = array_remove(b.seats, p_seat)
    where lead_id = p_lease and state = 'HELD' and map_version = p_map and p_seat = any(seats);
  foreach r in array p_left loop
    select booking_id into v_row from booking.booking
      where lead_id = p_lease and state = 'HELD' and map_version = p_map and legs = r order by booking_id limit 1;
    if not found then
      v_row := gen_random_uuid();
      insert into booking.booking (booking_id, lead_id, partner_id, trip_no, map_version, seats, prices, currency, legs, holder, channel, state,
          version, held_at, expires_at)
        select v_row, lead_id, partner_id, trip_no, p_map, '{}', '{}', currency, r, holder, channel, state, 0, held_at, expires_at
          from booking.booking where booking_id = p_lease;
    end if;
    update booking.booking b set seats = array(select n from unnest(b.seats || p_seat) n order by n), prices = b.prices || 0::bigint,
        version = version + 1
      where booking_id = v_row;
    insert into booking.seat_claim (booking_id, map_version, seat, partner_id, trip_no, legs, state)
      select booking_id, p_map, p_seat, partner_id, trip_no, r, 'HELD' from booking.booking where booking_id = v_row;
    perform booking.note(array[v_row], 'MODIFIED', p_actor, p_request);
  end loop;
end $$;

-- A lease goes on until then, at most p_most after it began. Past its end it is over, also where nobody has taken the seats yet.
create function pos.extend(p_lease uuid, p_ttl interval, p_most interval, p_actor text, p_request text) returns jsonb
language plpgsql volatile as $$
declare b record;
begin
  select min(state) as state, bool_or(expires_at <= clock_timestamp()) as over into b from booking.locked(p_lease);
  if b.state is null then return '{"status":"REFUSED","code":"LEASE_NOT_FOUND"}'; end if;
  if b.state <> 'HELD' or b.over then return '{"status":"REFUSED","code":"LEASE_OVER"}'; end if;
  update booking.booking set version = version + 1,
      expires_at = greatest(expires_at, least(clock_timestamp() + p_ttl, held_at + p_most)) where lead_id = p_lease and state = 'HELD';
  perform booking.note(array(select booking_id from booking.booking where lead_id = p_lease and state = 'HELD'), 'EXTENDED', p_actor, p_request);
  return '{"status":"HELD"}';
end $$;

-- The booking of one sale, not yet confirmed: its row, its reference, its passenger. False: the reference is in use, nothing is written.
-- p_seat null: a sale that has no seat, only money.
create function pos.put(p_id uuid, p_partner text, p_device text, p_trip bigint, p_map int, p_seat int2, p_legs int4range, p_amount bigint,
  p_currency text, p_reference text, p_passenger jsonb, p_folded text) returns bool language plpgsql volatile as $$
begin
  insert into booking.reference (reference, partner_id, lead_id, surnames)
    values (p_reference, p_partner, p_id, case when p_folded = '' then '{}' else array[p_folded] end) on conflict do nothing;
  if not found then return false; end if;
  insert into booking.booking (booking_id, lead_id, partner_id, trip_no, map_version, seats, prices, currency, legs, holder, channel, state,
    version, expires_at, reference, total, contact)
    values (p_id, p_id, p_partner, p_trip, p_map, case when p_seat is null then '{}' else array[p_seat] end,
      case when p_seat is null then '{}' else array[p_amount] end, p_currency, p_legs, 'device:' || p_device, 'POS', 'HELD', 0,
      clock_timestamp() + interval '1 hour', p_reference, p_amount, jsonb_strip_nulls(jsonb_build_object('phone', p_passenger->'phone')));
  if p_seat is not null then
    insert into booking.passenger (booking_id, seat, partner_id, first_name, last_name, type, price)
      values (p_id, p_seat, p_partner, p_passenger->>'firstName', p_passenger->>'lastName', p_passenger->>'type', p_amount);
  end if;
  return true;
end $$;

-- The claim of such a booking. False: somebody has these legs; the constraint is the judge.
create function pos.claim(p_id uuid) returns bool language plpgsql volatile as $$
begin
  insert into booking.seat_claim (booking_id, map_version, seat, partner_id, trip_no, legs, state)
    select booking_id, map_version, seats[1], partner_id, trip_no, legs, 'HELD' from booking.booking where booking_id = p_id
    on conflict on constraint seat_leg_sold_once do nothing;
  return found;
end $$;

-- A booking that was begun in this transaction and got no seat leaves no trace.
create function pos.drop(p_id uuid) returns void language plpgsql volatile as $$
begin
  delete from booking.reference where lead_id = p_id;
  delete from booking.booking where booking_id = p_id and version = 0;
end $$;

-- ------------------------------------------------------------------------------------------------ money and state, in one step each

-- Its seat is claimed: the cash is in the drawer, the booking CONFIRMED, its ticket issued.
create function pos.confirm(p_id uuid, p_payment uuid, p_drawer text, p_actor text, p_request text) returns void language plpgsql volatile as $$
begin
  if (select total from booking.booking where booking_id = p_id) > 0 then
    perform money.take_cash(p_payment, p_id, p_drawer, p_actor, p_request); end if;
  perform booking.move(array[p_id], 'CONFIRMED', p_actor, p_request);
  perform ticket.issue(array[p_id], p_actor, p_request);
end $$;

-- It has no seat: the cash is in the drawer and is owed back.
create function pos.owe(p_id uuid, p_payment uuid, p_drawer text, p_why text, p_actor text, p_request text) returns void
language plpgsql volatile as $$
begin
  if (select total from booking.booking where booking_id = p_id) > 0 then
    perform money.take_cash(p_payment, p_id, p_drawer, p_actor, p_request); end if;
  perform booking.move(array[p_id], 'CANCELLED', p_actor, p_request, null, jsonb_build_object('reason', p_why));
  perform money.plan_refund(p_id, null, p_why, p_actor, p_request);
end $$;

-- It loses its seat again: the claim goes, the ticket is good no more, the money is owed back.
create function pos.undo(p_id uuid, p_why text, p_actor text, p_request text) returns void language plpgsql volatile as $$
begin
  perform booking.move(array[p_id], 'CANCELLED', p_actor, p_request, null, jsonb_build_object('reason', p_why));
  perform ticket.revoke(array[p_id], null, p_actor, p_request);
  perform money.plan_refund(p_id, null, p_why, p_actor, p_request);
end $$;

-- What is owed for it leaves the drawer; how much that was.
create function pos.pay_out(p_id uuid, p_drawer text, p_actor text, p_request text) returns bigint language plpgsql volatile as $$
declare v_refund uuid; v_sum bigint := 0;
begin
  for v_refund in select refund_id from money.refund where lead_id = p_id and state = 'AT_COUNTER' order by refund_id loop
    v_sum := v_sum + money.give_cash(v_refund, p_drawer, p_actor, p_request);
  end loop;
  return v_sum;
end $$;
