-- Summaries for managers: how they are made, and how they are read. Areas are feeds; dates are service dates. Parameters are $1 ... $n.

-- name: feeds
-- The feeds in force, with what their events are judged by.
select f.feed_id, v.version_id, v.timezone from network.feed f join network.feed_version v on v.version_id = f.active_version_id order by 1

-- name: lift_limit
-- A day's summary may take longer than a request. Its parts are as large as a day of calls, which the planner cannot know of parts that it has
-- not made yet: where it believed them small it went through all pairs of 120,000 calls.
select set_config('statement_timeout', '120s', true), set_config('enable_nestloop', 'off', true), set_config('work_mem', '64MB', true)

-- name: days_said
-- The service days with stop events since $2: a mark that changes with their events.
select start_date, count(*) || '.' || count(*) filter (where late) || '.' || coalesce(round(extract(epoch from max(at)))::text, '') as mark
from telemetry.stop_events where area = $1 and at >= $2 and start_date ~ '^[0-9]{8}$' group by start_date

-- name: days_made
-- The summarised days of an area since $2.
select service_day, mark, version_id from analytics.day where area = $1 and service_day >= $2

-- name: has_version
-- Whether this feed version is still kept.
select exists (select from network.feed_version where version_id = $1)

-- name: forget_delays
-- A day is written anew.
delete from analytics.delay where area = $1 and service_day = $2

-- name: forget_stop_delays
-- A day is written anew.
delete from analytics.stop_delay where area = $1 and service_day = $2

-- name: forget_headways
-- A day is written anew.
delete from analytics.headway where area = $1 and service_day = $2

-- name: summarise_day
-- Service day $2 of area $1 by feed version $3 in time zone $4. A call is a stop of a trip; its time is the departure, at the last stop the
-- arrival. Of two sayings of one call the one that is no miss counts. Headways: of a trip that calls twice, each visit among its like.
with base as (
  select ((($2::date + time '12:00') at time zone $4) - interval '12 hours') as start
), said as materialized (
  select distinct on (e.trip_id, e.stop_sequence) e.trip_id, e.stop_sequence, e.kind,
         extract(epoch from e.arrived_at - base.start)::float8 as arrived_s, extract(epoch from e.departed_at - base.start)::float8 as departed_s
    from telemetry.stop_events e, base
   where e.area = $1 and e.start_date = to_char($2::date, 'YYYYMMDD')
     and e.at >= base.start - interval '12 hours' and e.at < base.start + interval '72 hours'
   order by e.trip_id, e.stop_sequence, e.kind = 'MISSED', e.at
), runs as (
  select service_id from network.service
   where version_id = $3 and not $2::date = any(removed)
     and ($2::date = any(added) or ($2::date between starts_on and ends_on and weekdays[extract(isodow from $2::date)::int]))
), told as (
  select distinct trip_id from said
), call as materialized (
  select t.trip_id, t.service_id in (select service_id from runs) as runs, p.route_id, p.direction_id, u.stop_id, u.seq, u.place::smallint as place,
         u.place = cardinality(p.stop_ids) as last, case when u.place = cardinality(p.stop_ids) then u.arr else u.dep end as planned_s,
         row_number() over (partition by t.trip_id, u.stop_id order by u.place) as visit
    from network.trip t
    join network.pattern p on p.version_id = t.version_id and p.pattern_id = t.pattern_id
    cross join lateral unnest(p.stop_ids, p.stop_sequences, t.arrival_s, t.departure_s) with ordinality as u(stop_id, seq, arr, dep, place)
   where t.version_id = $3 and (t.service_id in (select service_id from runs) or t.trip_id in (select trip_id from told))
), seen as materialized (
  select c.*, s.kind = 'MISSED' as missed, case when c.last then s.arrived_s else coalesce(s.departed_s, s.arrived_s) end as actual_s
    from call c join said s on s.trip_id = c.trip_id and s.stop_sequence = c.seq
), late as (
  select route_id, direction_id, stop_id, (planned_s / 3600)::smallint as hour, missed,
         case when missed then 0 else least(greatest(round(actual_s - planned_s), -3600), 7200)::int end as delay_s
    from seen where missed or actual_s is not null
), judged as materialized (
  select route_id, direction_id, stop_id, hour, missed, delay_s,
         case when not missed then least(greatest(floor(delay_s / 30.0) + 62, 1), 182)::int end as first_edge  -- below this edge and all after it
    from late
), hours as (
  select route_id, direction_id, hour, count(first_edge) as n, count(*) filter (where missed) as missed, sum(delay_s) as total
    from judged group by 1, 2, 3
), hour_edges as (
  select route_id, direction_id, hour, first_edge as edge, count(*) as c from judged where not missed group by 1, 2, 3, 4
), by_hour as (
  insert into analytics.delay
  select $1, $2::date, h.route_id, h.direction_id, h.hour, h.n, h.missed, h.total, c.below
    from hours h
    join (select route_id, direction_id, hour, array_agg(below order by edge) as below from (
      select g.route_id, g.direction_id, g.hour, k.edge,
             coalesce(sum(e.c) over (partition by g.route_id, g.direction_id, g.hour order by k.edge), 0)::int as below
        from hours g cross join generate_series(1, 181) as k(edge)
        left join hour_edges e on e.route_id = g.route_id and e.direction_id = g.direction_id and e.hour = g.hour and e.edge = k.edge) w
      group by 1, 2, 3) c on c.route_id = h.route_id and c.direction_id = h.direction_id and c.hour = h.hour
), places as (
  select route_id, direction_id, stop_id, count(first_edge) as n, count(*) filter (where missed) as missed, sum(delay_s) as total
    from judged group by 1, 2, 3
), place_edges as (
  select route_id, direction_id, stop_id, first_edge as edge, count(*) as c from judged where not missed group by 1, 2, 3, 4
), by_stop as (
  insert into analytics.stop_delay
  select $1, $2::date, h.route_id, h.direction_id, h.stop_id, h.n, h.missed, h.total, c.below
    from places h
    join (select route_id, direction_id, stop_id, array_agg(below order by edge) as below from (
      select g.route_id, g.direction_id, g.stop_id, k.edge,
             coalesce(sum(e.c) over (partition by g.route_id, g.direction_id, g.stop_id order by k.edge), 0)::int as below
        from places g cross join generate_series(1, 181) as k(edge)
        left join place_edges e on e.route_id = g.route_id and e.direction_id = g.direction_id and e.stop_id = g.stop_id and e.edge = k.edge) w
      group by 1, 2, 3) c on c.route_id = h.route_id and c.direction_id = h.direction_id and c.stop_id = h.stop_id
), plan as (
  select trip_id, route_id, direction_id, stop_id, visit, place,
         planned_s - lag(planned_s) over (partition by route_id, direction_id, stop_id, visit order by planned_s, trip_id) as gap_s
    from call where runs and not last
), observed as (
  select trip_id, route_id, direction_id, stop_id, visit, place,
         actual_s - lag(actual_s) over (partition by route_id, direction_id, stop_id, visit order by actual_s, trip_id) as gap_s
    from seen where not missed and not last and actual_s is not null
), gaps as (
  select coalesce(o.route_id, p.route_id) as route_id, coalesce(o.direction_id, p.direction_id) as direction_id,
         coalesce(o.stop_id, p.stop_id) as stop_id, coalesce(o.place, p.place) as place, o.gap_s as h, p.gap_s as s
    from plan p full join observed o on o.trip_id = p.trip_id and o.stop_id = p.stop_id and o.visit = p.visit
), by_headway as (
  insert into analytics.headway
  select $1, $2::date, route_id, direction_id, stop_id, min(place), count(h), coalesce(sum(h), 0), coalesce(sum(h * h), 0), count(s), coalesce(sum(s), 0),
         coalesce(sum(s::float8 * s), 0), count(*) filter (where h is not null and s > 0), count(*) filter (where s > 0 and h < 0.25 * s),
         count(*) filter (where s > 0 and h > 1.5 * s)
    from gaps where h is not null or s is not null group by 3, 4, 5
)
select count(*) from judged

-- name: day_made
-- The day is summarised, by which version and which events.
insert into analytics.day (area, service_day, version_id, mark, made_at) values ($1, $2, $3, $4, to_timestamp($5::bigint / 1000.0))
on conflict (area, service_day) do update set version_id = excluded.version_id, mark = excluded.mark, made_at = excluded.made_at

-- name: forget_old_days
-- Summaries over $1 days old.
delete from analytics.day where service_day < current_date - $1::int

-- name: forget_old_delays
-- Summaries over $1 days old.
delete from analytics.delay where service_day < current_date - $1::int

-- name: forget_old_stop_delays
-- Summaries over $1 days old.
delete from analytics.stop_delay where service_day < current_date - $1::int

-- name: forget_old_headways
-- Summaries over $1 days old.
delete from analytics.headway where service_day < current_date - $1::int

-- name: forget_old_heat
-- Summaries over $1 days old.
delete from analytics.heat where service_day < current_date - $1::int

-- name: heat_until
-- Up to when fixes are counted by place; no row: none were yet.
select until from analytics.heat_until

-- name: add_heat
-- The fixes from $1 to $2 by place. Run together with move_heat, in one transaction.
insert into analytics.heat as h (area, service_day, x, y, fixes, speeds, speed_sum_cms)
select b.area, (p.ts at time zone v.timezone)::date, floor(p.lon_e6 / 1000.0)::int, floor(p.lat_e6 / 1000.0)::int, count(*), count(p.speed_cms),
       coalesce(sum(p.speed_cms), 0)
  from telemetry.points p
  join telemetry.names n on n.no = p.bus_no
  join fleet.bus b on b.bus_id = n.name
  join network.feed f on f.feed_id = b.area
  join network.feed_version v on v.version_id = f.active_version_id
 where p.ts >= $1 and p.ts < $2
 group by 1, 2, 3, 4
on conflict (area, service_day, y, x) do update set
  fixes = h.fixes + excluded.fixes, speeds = h.speeds + excluded.speeds, speed_sum_cms = h.speed_sum_cms + excluded.speed_sum_cms

-- name: move_heat
-- They are counted up to $1.
insert into analytics.heat_until (until) values ($1) on conflict (only_row) do update set until = excluded.until

-- name: as_of
-- When the newest of these days was summarised.
select max(made_at) from analytics.day where area = any($1::text[]) and service_day between $2 and $3

-- name: on_time
-- Calls early, on time, late and missed, of areas $1 from $4 to $5, by $6 (total, day, route, hour), of one route $7 and direction $8 (null:
-- all). Windows as places in `below`: of the edge where on time begins ($2) and where it ends ($3).
select case $6 when 'day' then d.service_day::text when 'route' then d.area || ':' || d.route_id when 'hour' then lpad((d.hour % 24)::text, 2, '0')
         else '' end as key,
       sum(below[w.early])::bigint as early, sum(below[w.late] - below[w.early])::bigint as on_time, sum(n - below[w.late])::bigint as late,
       sum(missed)::bigint as missed, sum(delay_sum_s)::float8 / nullif(sum(n), 0) as mean_s
  from unnest($1::text[], $2::int[], $3::int[]) as w(area, early, late)
  join analytics.delay d on d.area = w.area
 where d.service_day between $4 and $5 and ($7::text is null or d.route_id = $7) and ($8::int is null or d.direction_id = $8)
 group by 1 order by 1 limit 2001

-- name: on_time_stops
-- The same by stop, the least punctual first.
select d.area || ':' || d.stop_id as key,
       sum(below[w.early])::bigint as early, sum(below[w.late] - below[w.early])::bigint as on_time, sum(n - below[w.late])::bigint as late,
       sum(missed)::bigint as missed, sum(delay_sum_s)::float8 / nullif(sum(n), 0) as mean_s
  from unnest($1::text[], $2::int[], $3::int[]) as w(area, early, late)
  join analytics.stop_delay d on d.area = w.area
 where d.service_day between $4 and $5 and ($6::text is null or d.route_id = $6) and ($7::int is null or d.direction_id = $7)
 group by 1 order by sum(below[w.late] - below[w.early])::float8 / sum(n + missed), 1 limit 2001

-- name: headways
-- Sums of headways of areas $1 from $2 to $3, by $4 (route, stop, day), of one route $5 and direction $6 (null: all).
select area, case when $4 <> 'day' or $5::text is not null then route_id end as route_id,
       case when $4 <> 'day' or $5::text is not null then direction_id end as direction_id,
       case when $4 = 'stop' then stop_id end as stop_id, case when $4 = 'day' then service_day end as service_day,
       sum(n)::bigint as n, sum(sum_s) as sum_s, sum(sum2_s) as sum2_s, sum(planned_n)::bigint as planned_n, sum(planned_sum_s) as planned_sum_s,
       sum(planned_sum2_s) as planned_sum2_s, sum(compared)::bigint as compared, sum(bunched)::bigint as bunched, sum(gapped)::bigint as gapped
  from analytics.headway
 where area = any($1::text[]) and service_day between $2 and $3 and ($5::text is null or route_id = $5) and ($6::int is null or direction_id = $6)
 group by 1, 2, 3, 4, 5 order by 1, 2, 3, 5, min(place), 4 limit 2001

-- name: heat
-- Fixes by cells of $8 thousandths of a degree, of areas $1 from $2 to $3, west $4 to east $5 and south $6 to north $7 (thousandths).
select floor(x / $8::float8)::int as x, floor(y / $8::float8)::int as y, sum(fixes)::bigint as fixes,
       (sum(speed_sum_cms) / (100.0 * nullif(sum(speeds), 0)))::float8 as mean_speed_mps
  from analytics.heat
 where area = any($1::text[]) and service_day between $2 and $3 and x between $4 and $5 and y between $6 and $7
 group by 1, 2 order by 3 desc limit 5001

-- name: stop_means
-- Calls and their mean delay by stop, of areas $1 from $2 to $3.
select area, stop_id, sum(n)::bigint as n, sum(delay_sum_s)::float8 / sum(n) as mean_s from analytics.stop_delay
 where area = any($1::text[]) and service_day between $2 and $3 and n > 0 group by 1, 2 limit 50000

-- name: off_route_routes
-- Episodes off the route that began from $2 to $3, by route: how many, how long (to where the bus or a person ended it; those that go on: until $4), how far, how many stops missed.
select area, route_id, count(*) as episodes, sum(extract(epoch from coalesce(closed_at, case when handled_state = 'CLOSED' then handled_at end, $4) - opened_at))::float8 / 60 as minutes,
       max((detail ->> 'maxOffsetM')::float8) as worst_m, sum(coalesce(jsonb_array_length(detail -> 'bypassedStops'), 0))::bigint as bypassed
  from telemetry.incidents
 where area = any($1::text[]) and kind = 'OFF_ROUTE' and opened_at >= $2 and opened_at < $3 and ($5::text is null or route_id = $5)
 group by 1, 2 order by 4 desc limit 2001

-- name: off_route_places
-- The same by place: cells of two thousandths of a degree.
select floor(lat * 500)::int as y, floor(lon * 500)::int as x, count(*) as episodes, avg(lat) as lat, avg(lon) as lon,
       sum(extract(epoch from coalesce(closed_at, case when handled_state = 'CLOSED' then handled_at end, $4) - opened_at))::float8 / 60 as minutes,
       array_agg(distinct area || ':' || route_id) filter (where route_id is not null) as routes
  from telemetry.incidents
 where area = any($1::text[]) and kind = 'OFF_ROUTE' and opened_at >= $2 and opened_at < $3 and ($5::text is null or route_id = $5)
 group by 1, 2 order by 3 desc, 1, 2 limit 200

-- name: ladder_stops
-- What was said of these trips on one service date, each trip in order.
select trip_id, bus_id, stop_sequence, kind, arrived_at, departed_at from telemetry.stop_events
 where area = $1 and start_date = $2 and trip_id = any($3::text[]) order by trip_id, stop_sequence, at

-- name: ladder_points
-- Where buses $1 on trips $2 of date $5 (yyyymmdd) were along the line from $3 to $4, one fix of each $6 seconds.
select u.trip_id, p.ts, p.along_m
  from unnest($1::text[], $2::text[], $3::timestamptz[], $4::timestamptz[]) as u(bus_id, trip_id, since, until)
  join telemetry.names b on b.name = u.bus_id
  join telemetry.names t on t.name = u.trip_id
 cross join lateral (
   select distinct on (date_bin(make_interval(secs => $6), q.ts, timestamptz '2000-01-01 00:00:00+00')) q.ts, q.along_m
     from telemetry.points q
    where q.bus_no = b.no and q.ts >= u.since and q.ts <= u.until and q.trip_no = t.no and q.start_date = $5 and q.along_m is not null and not q.late
    order by date_bin(make_interval(secs => $6), q.ts, timestamptz '2000-01-01 00:00:00+00'), q.ts) p
 order by u.trip_id, p.ts limit 50000

-- name: fixes_since
-- How many fixes of the buses of some areas lie between $2 and $3 (UTC ms).
select count(*) from telemetry.points p
 where p.ts >= to_timestamp($2::bigint / 1000.0) and p.ts < to_timestamp($3::bigint / 1000.0)
   and p.bus_no = any(array(select n.no from telemetry.names n join fleet.bus b on b.bus_id = n.name where b.area = any($1::text[])))
