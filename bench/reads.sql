-- A month of a fleet for bench/reads.py. The first day of it is made by hand, summarised by the product, and its summaries stand for the others.

-- name: names
-- Numbers of the buses that leave fixes.
insert into telemetry.names (name) select 'bus-' || i from generate_series(0, %(buses)s - 1) i on conflict do nothing;

-- name: buses
-- The fleet.
insert into fleet.bus (bus_id, partner_id, area) select 'bus-' || i, 'month', 'month' from generate_series(0, 199) i;

-- name: calls
-- Every call of one day, up to 400 s late, one in a hundred missed.
insert into telemetry.stop_events (event_id, at, area, bus_id, trip_id, start_date, route_id, stop_id, stop_sequence, arrived_at, departed_at, kind, late)
select t.trip_id || ' ' || u.place, c.at, 'month', 'bus-' || (hashtext(t.trip_id) & 127), t.trip_id, %(day)s, t.route_id, u.stop_id, u.seq, c.at,
       c.at + interval '20 seconds', case when random() < 0.01 then 'MISSED' else 'SERVED' end, false
  from network.trip t join network.pattern p using (version_id, pattern_id)
 cross join lateral unnest(p.stop_ids, p.stop_sequences, t.departure_s) with ordinality as u(stop_id, seq, dep, place)
 cross join lateral (select to_date(%(day)s, 'YYYYMMDD')::timestamp at time zone 'UTC' + make_interval(secs => u.dep + random() * 500 - 100) as at) c;

-- name: fixes
-- A fix every 5 s of each bus, of the first one every second.
insert into telemetry.points (ts, bus_no, lat_e6, lon_e6, latency_ms, device_no, source_no, state_no, late, speed_cms, bearing_ddeg, along_m)
select to_date(%(day)s, 'YYYYMMDD')::timestamp at time zone 'UTC' + make_interval(secs => s), n.no, (36e6 + 2e5 * sin(s / 3000.0 + n.no))::int,
       (3e6 + 2e5 * cos(s / 5000.0 + n.no * 2))::int, 40, n.no, n.no, n.no, false, 800, 900, s %% 20000
  from telemetry.names n cross join lateral generate_series(0, 86399, case when n.name = 'bus-0' then 1 else 5 end) s
 where n.name like 'bus-%%';

-- name: summarised
-- Whether the product has summarised the day, by calls and by place.
select exists (select from analytics.day) and exists (select from analytics.heat);

-- name: copy_delay
-- The same for the days before it.
insert into analytics.delay select area, service_day - k, route_id, direction_id, hour, n, missed, delay_sum_s, below
from analytics.delay, generate_series(1, %(more)s) k where service_day = to_date(%(day)s, 'YYYYMMDD') on conflict do nothing;

-- name: copy_stop_delay
-- The same for the days before it.
insert into analytics.stop_delay select area, service_day - k, route_id, direction_id, stop_id, n, missed, delay_sum_s, below
from analytics.stop_delay, generate_series(1, %(more)s) k where service_day = to_date(%(day)s, 'YYYYMMDD') on conflict do nothing;

-- name: copy_headway
-- The same for the days before it.
insert into analytics.headway select area, service_day - k, route_id, direction_id, stop_id, place, n, sum_s, sum2_s, planned_n, planned_sum_s,
  planned_sum2_s, compared, bunched, gapped
from analytics.headway, generate_series(1, %(more)s) k where service_day = to_date(%(day)s, 'YYYYMMDD') on conflict do nothing;

-- name: copy_heat
-- The same for the days before it.
insert into analytics.heat select area, service_day - k, x, y, fixes, speeds, speed_sum_cms
from analytics.heat, generate_series(1, %(more)s) k where service_day = to_date(%(day)s, 'YYYYMMDD') on conflict do nothing;
