-- name: trip_by_id
-- A trip instance on sale with its stops and the seat map in force, by its public id.
select i.*, m.seats as sellable, m.labels, m.layout,
  (select jsonb_agg(jsonb_build_array(place, stop_sequence, stop_id, name, lat, lon, extract(epoch from arrives_at) * 1000,
    extract(epoch from departs_at) * 1000, pickup, drop_off) order by place) from sale.trip_stop s where s.trip_no = i.trip_no) as halts
from sale.trip_instance i, lateral (select seats, labels, layout from sale.seat_map
  where trip_no = i.trip_no and map_version = i.map_version offset 0) m where i.trip_id = $1

-- name: trip_by_no
-- The same by its number.
select i.*, m.seats as sellable, m.labels, m.layout,
  (select jsonb_agg(jsonb_build_array(place, stop_sequence, stop_id, name, lat, lon, extract(epoch from arrives_at) * 1000,
    extract(epoch from departs_at) * 1000, pickup, drop_off) order by place) from sale.trip_stop s where s.trip_no = i.trip_no) as halts
from sale.trip_instance i, lateral (select seats, labels, layout from sale.seat_map
  where trip_no = i.trip_no and map_version = i.map_version offset 0) m where i.trip_no = $1

-- name: labels_of_map
-- Labels of the seats of one version of a trip's map.
select labels from sale.seat_map where trip_no = $1 and map_version = $2

-- name: cancelled_trips
-- Trips that were on sale, leave or left around now, and do not run.
select trip_id from sale.trip_instance
where departs_at >= now() - interval '1 day' and departs_at < now() + interval '2 days' and status = 'CANCELLED'
order by departs_at limit 10000
