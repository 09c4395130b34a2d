-- A small operator whose trips are on sale, written straight into the tables: what the benches of the booking side load.

-- name: operator
-- The operator `demo`, its layout and its prices.
with p as (insert into public.partner (partner_id, name) values ('demo', 'Bench coaches') on conflict do nothing),
l as (insert into sale.seat_layout (partner_id, layout_id, name, body) values ('demo', 'bench', 'Bench coach', $1::jsonb) on conflict do nothing)
insert into sale.fare_plan (partner_id, fare_plan_id, name, currency, body)
values ('demo', 'bench', 'Bench fares', 'DZD', $2::jsonb) on conflict do nothing;

-- name: trips
-- $1 trips from number $2 on, of $3 stops half an hour apart, leaving a month from now, one an hour.
insert into sale.trip_instance (trip_id, partner_id, feed_id, route_id, start_date, headsign, closes_at, stops, departs_at, arrives_at,
  timezone, layout_id, fare_plan_id, currency)
select 'bench:T' || n || ':20300101', 'demo', 'bench', 'bench:R', '2030-01-01', 'the coast', d.at, $3::int, d.at, d.at + $3::int * interval '30 minutes',
  'Africa/Algiers', 'bench', 'bench', 'DZD'
from generate_series($2::int, $2::int + $1::int - 1) n, lateral (select date_trunc('hour', clock_timestamp()) + interval '30 days' + n * interval '1 hour' as at) d;

-- name: stops
-- The stops of trips that have none.
insert into sale.trip_stop (trip_no, place, partner_id, stop_sequence, stop_id, name, lat, lon, arrives_at, departs_at, pickup, drop_off)
select i.trip_no, g, 'demo', g + 1, 'bench:S' || g, 'Stop ' || g, 36.7, 3.0 + g * 0.1, i.departs_at + g * interval '30 minutes',
  i.departs_at + g * interval '30 minutes', g < i.stops - 1, g > 0
from sale.trip_instance i, generate_series(0, i.stops - 1) g
where i.feed_id = 'bench' and not exists (select from sale.trip_stop s where s.trip_no = i.trip_no);

-- name: maps
-- The seat maps of trips that have none; $1 labels, $2 the layout.
insert into sale.seat_map (trip_no, map_version, partner_id, seats, labels, layout)
select i.trip_no, 1, 'demo', array(select g::int2 from generate_series(1, cardinality($1::text[])) g), $1::text[], $2::jsonb
from sale.trip_instance i
where i.feed_id = 'bench' and not exists (select from sale.seat_map m where m.trip_no = i.trip_no);

-- name: sold_out
-- Every seat of the trips from number $1 on is sold from end to end, one booking each: tables of the size of a season.
with b as (
  insert into booking.booking (booking_id, lead_id, partner_id, trip_no, map_version, seats, prices, currency, legs, holder, state, version, expires_at)
  select id, id, 'demo', i.trip_no, 1, array[s], array[100000], 'DZD', int4range(0, i.stops - 1), 'guest:' || id, 'CONFIRMED', 3,
    clock_timestamp() - interval '1 day'
  from sale.trip_instance i, lateral (select s, gen_random_uuid() as id from sale.seat_map m, unnest(m.seats) s where m.trip_no = i.trip_no) one
  where i.feed_id = 'bench' and substring(i.trip_id from 'T(\d+)')::int >= $1
  returning booking_id, partner_id, trip_no, seats[1] as seat, legs)
insert into booking.seat_claim (booking_id, map_version, seat, partner_id, trip_no, legs, state)
select booking_id, 1, seat, partner_id, trip_no, legs, 'SOLD' from b;

-- name: hold
-- One hold, as the product asks for it, without its limits: the floor beneath the HTTP call. $3: trip number.
select booking.hold(p_partner => 'demo', p_key => $1::uuid, p_print => $2, p_booking => $1::uuid, p_trip => $3, p_map => 1, p_seats => $4,
  p_from => 0, p_to => $5, p_prices => $6, p_currency => 'DZD', p_quote => '{}', p_holder => $7, p_channel => 'WEB',
  p_ttl => interval '10 minutes', p_actor => $7, p_request => $7, p_max_seats => 6, p_max_holds => 3);

-- name: release
-- Its end.
select booking.release(p_key => $1::uuid, p_print => $2, p_lead => $3::uuid, p_actor => 'bench', p_request => 'bench');

-- name: trip_no
-- The number of a trip on sale.
select trip_no from sale.trip_instance where trip_id = $1;

-- name: layout
-- Another layout of the operator, for a swap of the bus: $1 id, $2 body.
insert into sale.seat_layout (partner_id, layout_id, name, body) values ('demo', $1, $1, $2::jsonb) on conflict do nothing;
