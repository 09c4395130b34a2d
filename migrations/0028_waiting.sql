-- Who waits: the waitlist of a trip that is full, and what its operator said about the waiting room of a rush.
--
-- A place on the waitlist is offered seats that were let go: they are held for it (a booking of channel WAITLIST) and its owner is told; what
-- becomes of that hold is what becomes of the place. Fair: first come, first served among those whose wish fits what is free.

create schema waiting;

create table waiting.entry (
  entry_id uuid primary key,
  number bigint generated always as identity,                -- who came first
  partner_id text not null,
  trip_no bigint not null references sale.trip_instance,
  seats int2 not null constraint entry_seats check (seats between 1 and 60),
  legs int4range not null,
  holder text not null,                                      -- as of a booking: whose hold it will be
  contact jsonb not null,                                    -- {"email", "phone"}: where to tell them
  person text not null,                                      -- who it is, so that nobody stands there twice
  state text not null default 'WAITING' constraint entry_state
    check (state in ('WAITING', 'OFFERED', 'TAKEN', 'LAPSED', 'LEFT', 'CLOSED')),
  hold_id uuid,                                              -- of the offer; null: there was none
  joined_at timestamptz not null default clock_timestamp(),
  version int not null default 1,
  -- nobody stands there twice; TAKEN, LAPSED, LEFT and CLOSED are over
  constraint entry_once exclude using btree (trip_no with =, person with =) where (state in ('WAITING', 'OFFERED'))
);
create index entry_waiting on waiting.entry (trip_no, number) where state in ('WAITING', 'OFFERED');
create index entry_hold on waiting.entry (hold_id) where hold_id is not null;

-- Trips of which something was let go since somebody last looked: written by the relay of the outbox, emptied by who offers.
create table waiting.freed (
  trip_no bigint primary key references sale.trip_instance on delete cascade,
  partner_id text not null,
  at timestamptz not null default clock_timestamp()
);

-- What an operator said about a trip's waiting room. No row: AUTO.
create table waiting.room (
  trip_no bigint primary key references sale.trip_instance on delete cascade,
  partner_id text not null,
  mode text not null constraint room_mode check (mode in ('ON', 'OFF', 'AUTO')),
  admit_per_s real constraint room_admit check (admit_per_s between 0.1 and 10000),
  version int not null default 1
);

select office.fence('waiting.entry'), office.fence('waiting.freed'), office.fence('waiting.room');

-- One at a time looks after the waitlist of a trip. False: somebody does already. Lock order: this, then as everywhere.
create function waiting.look_after(p_trip bigint) returns bool language plpgsql volatile as $$
begin
  return pg_try_advisory_xact_lock(4, hashint8(p_trip));
end $$;

-- A place is something else from now on: audit row and event (topic waitlist) go with it.
create function waiting.move(p_entry uuid, p_to text, p_hold uuid, p_actor text, p_request text) returns void language plpgsql volatile as $$
declare e waiting.entry;
begin
  update waiting.entry set state = p_to, version = version + 1, hold_id = coalesce(p_hold, hold_id) where entry_id = p_entry returning * into e;
  perform waiting.note(e, p_actor, p_request);
end $$;

create function waiting.note(e waiting.entry, p_actor text, p_request text) returns void language plpgsql volatile as $$
begin
  perform office.record(e.partner_id, p_actor, p_request, 'waitlist', case e.state when 'WAITING' then 'JOINED' else e.state end, e.entry_id,
    e.version, jsonb_build_object('tripNo', e.trip_no, 'count', e.seats, 'from', lower(e.legs), 'to', upper(e.legs), 'state', e.state,
      'holdId', e.hold_id), jsonb_build_object('state', e.state, 'version', e.version));
end $$;

-- A new place at the end of the list. Raises the exclusion of entry_once where that person waits for this trip already.
create function waiting.join(p_entry uuid, p_partner text, p_trip bigint, p_seats int2, p_legs int4range, p_holder text, p_contact jsonb,
  p_person text, p_actor text, p_request text) returns void language plpgsql volatile as $$
declare e waiting.entry;
begin
  insert into waiting.entry (entry_id, partner_id, trip_no, seats, legs, holder, contact, person)
    values (p_entry, p_partner, p_trip, p_seats, p_legs, p_holder, p_contact, p_person) returning * into e;
  perform waiting.note(e, p_actor, p_request);
  insert into waiting.freed (trip_no, partner_id) values (p_trip, p_partner) on conflict do nothing;   -- perhaps there are free seats now
end $$;

-- Offers whose hold is no longer one: TAKEN where it went on to be a booking, LAPSED where it is over. Places of a trip that is no longer
-- sold: CLOSED. How many that were.
create function waiting.tidy(p_trip bigint, p_request text) returns int language plpgsql volatile as $$
declare r record; n int := 0; v_over uuid[];
begin
  select array_agg(b.booking_id) into v_over from waiting.entry e join booking.booking b on b.booking_id = e.hold_id
    where e.trip_no = p_trip and e.state = 'OFFERED' and b.state = 'HELD' and b.expires_at <= clock_timestamp();
  if v_over is not null then perform booking.expire(v_over, p_request); end if;
  for r in
    select e.entry_id, case when e.state = 'WAITING' then 'CLOSED' when b.state in ('EXPIRED', 'RELEASED') then 'LAPSED' else 'TAKEN' end as to_state
      from waiting.entry e join sale.trip_instance i using (trip_no) left join booking.booking b on b.booking_id = e.hold_id
      where e.trip_no = p_trip and ((e.state = 'OFFERED' and b.state <> 'HELD') or (e.state = 'WAITING' and
        (i.status <> 'SCHEDULED' or i.closes_at <= clock_timestamp())))
      order by e.number for update of e loop
    perform waiting.move(r.entry_id, r.to_state, null, 'system', p_request);
    n := n + 1;
  end loop;
  return n;
end $$;

-- The hold is made; the place and the booking say so, and whoever tells people hears WAITLIST_OFFERED with where to find them.
create function waiting.offer(p_entry uuid, p_hold uuid, p_request text) returns void language plpgsql volatile as $$
begin
  perform waiting.move(p_entry, 'OFFERED', p_hold, 'system', p_request);
  update booking.booking set version = version + 1, contact = (select contact from waiting.entry where entry_id = p_entry)
    where booking_id = p_hold;
  perform booking.note(array[p_hold], 'WAITLIST_OFFERED', 'system', p_request, jsonb_build_object('entryId', p_entry));
end $$;
