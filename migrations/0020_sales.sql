-- What is sold: trip instances with their stops as they stood when sales opened, their seat map by version, and what the operator set up
-- for them (seat layouts, offers). Sold things keep their own copy of what they were sold as: a feed that changes later changes nothing here.

create schema office;
create schema sale;

-- The second fence between tenants: a row is seen by a transaction that has said for which partner it works (`tp.partner`, local to the
-- transaction), or that it works for all of them ('*': sweeps, dispatchers, a guest's reference). Nothing said: no rows, the owner included.
create function office.fence(p_table regclass) returns void language plpgsql as $$
begin
  execute format('alter table %s enable row level security', p_table);
  execute format('alter table %s force row level security', p_table);
  execute format(
    'create policy tenant on %s using (partner_id = current_setting(''tp.partner'', true) or current_setting(''tp.partner'', true) = ''*'')',
    p_table);
end $$;

-- A seat layout as the operator drew it (engine/booking/seats.py reads the body).
create table sale.seat_layout (
  partner_id text not null references public.partner,
  layout_id text not null constraint layout_id_form check (layout_id ~ '^[A-Za-z0-9._-]{1,48}$'),
  name text not null,
  body jsonb not null,
  version int not null default 1,
  changed_at timestamptz not null default clock_timestamp(),
  retired_at timestamptz,
  primary key (partner_id, layout_id)
);

-- Fares of an operator (engine/booking/fares.py reads the body).
create table sale.fare_plan (
  partner_id text not null references public.partner,
  fare_plan_id text not null constraint fare_plan_id_form check (fare_plan_id ~ '^[A-Za-z0-9._-]{1,48}$'),
  name text not null,
  currency text not null constraint fare_plan_currency check (currency ~ '^[A-Z]{3}$'),
  body jsonb not null,
  version int not null default 1,
  changed_at timestamptz not null default clock_timestamp(),
  retired_at timestamptz,
  primary key (partner_id, fare_plan_id)
);

-- Which routes are sold: every trip instance of them within the horizon is put on sale by the opener (engine/booking/sales.py).
create table sale.offer (
  partner_id text not null references public.partner,
  route_id text not null,                       -- public id, FEED:ROUTE
  layout_id text not null,
  fare_plan_id text not null,
  open_days int not null default 14 constraint offer_open_days check (open_days between 1 and 365),
  close_s int not null default 0 constraint offer_close check (close_s between 0 and 86400),  -- sales end this long before departure
  women_only_seats int2[] not null default '{}',
  changed_at timestamptz not null default clock_timestamp(),
  retired_at timestamptz,
  primary key (route_id),
  foreign key (partner_id, layout_id) references sale.seat_layout,
  foreign key (partner_id, fare_plan_id) references sale.fare_plan
);

-- A trip on one service date, on sale. Legs are half-open ranges of the stop's place (0 .. stops - 1): at most 62 legs fit one word of bits.
create table sale.trip_instance (
  trip_no bigint generated always as identity primary key,
  trip_id text not null constraint trip_instance_id unique,  -- public id, FEED:TRIP:YYYYMMDD
  partner_id text not null references public.partner,
  feed_id text not null,
  route_id text not null,                                     -- public id
  start_date date not null,
  headsign text,
  status text not null default 'SCHEDULED' constraint trip_instance_status check (status in ('SCHEDULED', 'STARTED', 'COMPLETED', 'CANCELLED')),
  sales_open bool not null default true,
  closes_at timestamptz not null,                             -- no holds from then on
  map_version int not null default 1,
  stops int2 not null constraint trip_instance_stops check (stops between 2 and 62),
  departs_at timestamptz not null,
  arrives_at timestamptz not null,
  timezone text not null,
  bus_id text,
  layout_id text not null,
  fare_plan_id text not null,
  currency text not null,
  version int not null default 1
);
create index trip_instance_route on sale.trip_instance (route_id, departs_at);
create index trip_instance_departs on sale.trip_instance (departs_at);

create table sale.trip_stop (
  trip_no bigint not null references sale.trip_instance on delete cascade,
  place int2 not null,                                        -- 0 .. stops - 1
  partner_id text not null,
  stop_sequence int not null,                                 -- the feed's own
  stop_id text not null,                                      -- public id
  name text not null,
  lat double precision not null,
  lon double precision not null,
  arrives_at timestamptz not null,
  departs_at timestamptz not null,
  pickup bool not null default true,
  drop_off bool not null default true,
  primary key (trip_no, place)
);
create index trip_stop_stop on sale.trip_stop (stop_id, departs_at);

-- The seats of a trip instance by map version (a bus swap makes the next one). One row: one probe checks all seats of a hold.
create table sale.seat_map (
  trip_no bigint not null references sale.trip_instance on delete cascade,
  map_version int not null,
  partner_id text not null,
  seats int2[] not null,                                      -- numbers that may be sold: 1 .. cardinality(labels), without the blocked ones
  labels text[] not null,                                     -- labels[n] is the label of seat n
  layout jsonb not null,                                      -- decks, rows, kinds, doors, as engine/booking/seats.py reads them
  primary key (trip_no, map_version)
);

select office.fence('sale.seat_layout'), office.fence('sale.fare_plan'), office.fence('sale.offer'), office.fence('sale.trip_instance'),
  office.fence('sale.trip_stop'), office.fence('sale.seat_map');
