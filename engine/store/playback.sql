-- What was recorded of buses in a stretch of time, for playing it again. Parameters are $1 ... $n.

-- name: buses_of_route
-- The buses that were on trips of route $2 of area $1 from $3 to $4.
select distinct bus_id from telemetry.trip_events
where area = $1 and route_id = $2 and at >= $3::timestamptz - interval '12 hours' and at < $4 order by bus_id limit $5

-- name: numbers
-- The numbers of names; a bus that was never recorded has none.
select name, no from telemetry.names where name = any($1::text[])

-- name: samples
-- Where buses $1 (numbers) were at $2, $2 + $3 s, ... ($4 times): the newest fix of each instant, at most $5 s old.
-- One probe of the primary key for each bus and instant: the same price however dense the fixes are. $6 and $7, the ends of all of it, leave
-- the days (partitions) alone that have nothing to do with it.
select b.no as bus_no, k, p.lat_e6, p.lon_e6, p.speed_cms, p.bearing_ddeg, p.along_m, p.state_no, p.trip_no, p.start_date
  from unnest($1::int[]) as b(no)
 cross join generate_series(0, $4::int - 1) as k
 cross join lateral (
   select q.lat_e6, q.lon_e6, q.speed_cms, q.bearing_ddeg, q.along_m, q.state_no, q.trip_no, q.start_date from telemetry.points q
    where q.bus_no = b.no and q.ts > $6 and q.ts <= $7 and q.ts <= $2::timestamptz + make_interval(secs => k * $3::float8)
      and q.ts > $2::timestamptz + make_interval(secs => k * $3::float8 - $5::float8)
    order by q.ts desc limit 1) p
 order by b.no, k

-- name: incidents
-- Episodes of buses $2 that were going on between $3 and $4, of areas $1, the oldest first.
select incident_id, area, kind, severity, bus_id, trip_id, start_date, route_id, opened_at, closed_at, lat, lon from telemetry.incidents
where area = any($1::text[]) and bus_id = any($2::text[]) and opened_at < $4 and opened_at >= $3::timestamptz - interval '1 day'
  and coalesce(closed_at, case when handled_state = 'CLOSED' then handled_at end, 'infinity') >= $3 order by opened_at, incident_id limit 500

-- name: stop_events
-- What buses $1 did at stops from $2 to $3, in order.
select area, bus_id, trip_id, start_date, stop_id, stop_sequence, kind, arrived_at, departed_at from telemetry.stop_events
where bus_id = any($1::text[]) and at >= $2 and at < $3 order by at, bus_id limit 5000
