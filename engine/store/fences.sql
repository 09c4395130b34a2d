-- name: mark
-- The mark for the next `since`: every transaction below it is finished and was visible to this snapshot.
select pg_snapshot_xmin(pg_current_snapshot())::text::bigint as mark

-- name: since
-- Fences of an area of transactions from a mark on (0: all in force), retired ones too.
select fence_id, name, kind, severity, drawing, depth_m, calendar, buses, routes, limit_kmh, version, retired from fleet.fences_since($1, $2)

-- name: fences
-- An operator's fences by id (so by age), from a cursor on ('*': every operator's), those whose boxes meet a box ($7: west, south, east, north;
-- null: all).
select fence_id::text as id, partner_id, feed_id, name, kind, severity, drawing, calendar, buses, routes, limit_kmh, depth_m, version, changed_at,
  changed_by, retired_at
from fleet.fence
where ($1 = '*' or partner_id = $1) and fence_id > $2::uuid and (retired_at is null or $4)
  and ($5::text is null or feed_id = $5) and ($6::text is null or kind = $6)
  and ($7::float8[] is null or box && ST_MakeEnvelope($7[1], $7[2], $7[3], $7[4], 4326)
    or box && ST_MakeEnvelope($7[1] + 360, $7[2], $7[3] + 360, $7[4], 4326)
    or box && ST_MakeEnvelope($7[1] - 360, $7[2], $7[3] - 360, $7[4], 4326))
order by fence_id limit $3

-- name: fence_for_update
-- One fence, locked to the end of the transaction.
select fence_id::text as id, partner_id, feed_id, name, kind, severity, drawing, calendar, buses, routes, limit_kmh, depth_m, version, changed_at,
  changed_by, retired_at
from fleet.fence where partner_id = $1 and fence_id = $2::uuid for update

-- name: count
-- Fences of an area in force.
select count(*) from fleet.fence where feed_id = $1 and retired_at is null

-- name: add
-- A new fence.
insert into fleet.fence (fence_id, partner_id, feed_id, name, kind, severity, drawing, shape, radius_m, half_width_m, depth_m, box, calendar, buses,
  routes, limit_kmh, changed_by)
values ($1::uuid, $2, $3, $4, $5, $6, $7::jsonb, ST_SetSRID(ST_GeomFromGeoJSON($8::text), 4326), $9, $10, $11,
  ST_MakeEnvelope($12, $13, $14, $15, 4326), $16::jsonb, $17::text[], $18::text[], $19, $20)
returning fence_id::text as id, partner_id, feed_id, name, kind, severity, drawing, calendar, buses, routes, limit_kmh, depth_m, version, changed_at,
  changed_by, retired_at

-- name: change
-- The next version of a fence.
update fleet.fence set name = $3, severity = $4, drawing = $5::jsonb, shape = ST_SetSRID(ST_GeomFromGeoJSON($6::text), 4326), radius_m = $7,
  half_width_m = $8, depth_m = $9, box = ST_MakeEnvelope($10, $11, $12, $13, 4326), calendar = $14::jsonb, buses = $15::text[],
  routes = $16::text[], limit_kmh = $17, changed_by = $18, version = version + 1, changed_at = clock_timestamp()
where partner_id = $1 and fence_id = $2::uuid
returning fence_id::text as id, partner_id, feed_id, name, kind, severity, drawing, calendar, buses, routes, limit_kmh, depth_m, version, changed_at,
  changed_by, retired_at

-- name: retire
-- It holds no more.
update fleet.fence set retired_at = clock_timestamp(), changed_by = $3, version = version + 1, changed_at = clock_timestamp()
where partner_id = $1 and fence_id = $2::uuid
returning fence_id::text as id, partner_id, feed_id, name, kind, severity, drawing, calendar, buses, routes, limit_kmh, depth_m, version, changed_at,
  changed_by, retired_at
